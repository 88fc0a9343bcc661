// A report: the views of a run and of its best candidates, from data that the page carries with it.
"use strict";
(() => {
  const { h } = EvoMerge;
  const CANDIDATE = "#candidate-",
    VIEWS = "views";

  // data: { run (view of the run), candidates (digest → view), items (texts of the suite's items) }
  EvoMerge.report = (data) => {
    const own = EvoMerge.run.store(),
      state = EvoMerge.run.fresh(),
      states = {};
    const { section, fitness, leaderboard, pareto, drift } = EvoMerge.run;
    own.take(data.run);
    EvoMerge.pathOf = (one) => (data.candidates[one.digest] ? CANDIDATE + one.digest : null);
    EvoMerge.home = `#${VIEWS}`;
    const wanted = () =>
      location.hash.startsWith(CANDIDATE) ? data.candidates[location.hash.slice(CANDIDATE.length)] : null;
    addEventListener("hashchange", () => {
      EvoMerge.redraw();
      requestAnimationFrame(() =>
        requestAnimationFrame(() => {
          if (wanted() || location.hash === `#${VIEWS}`) document.getElementById(VIEWS).scrollIntoView();
        }),
      );
    });
    const toggle = (name) => {
      if (state.hidden.has(name)) state.hidden.delete(name);
      else state.hidden.add(name);
      EvoMerge.redraw();
    };

    function search() {
      if (!own.order.length) return h("p", { class: "soft" }, "No candidate has been proposed yet.");
      const found = Object.keys(data.candidates).length;
      return h(
        "div",
        { key: "search" },
        section("fitness", "Fitness over the search", fitness(own, state.hidden, toggle)),
        own.ranked.length > 0 &&
          section("leaderboard", "Leaderboard", [
            h(
              "p",
              { key: "note", class: "soft" },
              `The champion, the sources and the best, ${found} in all, have pages of their own here: their names are links.`,
            ),
            leaderboard(own),
          ]),
        own.scored.length > 1 && section("pareto", "Trade-off", pareto(own, state.axes, state.hidden)),
        (own.generations.size > 0 || own.data.drift.stretches.length > 1) &&
          section("drift", "How the search moves", drift(own)),
        own.scored.length > 0 &&
          section(
            "lineage",
            "Lineage",
            EvoMerge.lineage({
              champion: own.champion,
              best: own.ranked,
              byIndex: own.rows,
              looks: own.data.operators,
              href: EvoMerge.pathOf,
            }),
          ),
      );
    }

    function show() {
      const one = wanted();
      if (!one) return search();
      const key = one.candidate.digest;
      states[key] = states[key] || EvoMerge.candidate.fresh();
      return h("div", { key }, EvoMerge.candidate.show({ ...one, items: data.items }, states[key]));
    }
    return { show };
  };
})();
