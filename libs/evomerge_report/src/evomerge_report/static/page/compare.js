// Two runs side by side: their curves over each other, their champions and tasks.
"use strict";
(() => {
  const { h, format, charts } = EvoMerge;
  const INK = ["--accent", "--bad"],
    DASH = [[], [6, 3]];

  function curvesOf(own, place, n) {
    const best = new Array(n).fill(null),
      mean = new Array(n).fill(null);
    let top = null;
    for (const one of own.order) {
      if (one.fitness !== null && (top === null || one.fitness > top)) top = one.fitness;
      best[one.index] = top;
    }
    for (const [index, value] of own.means) mean[index] = value;
    const { run } = own.data;
    return [
      { label: `${run.name}: best so far`, colour: INK[place], dash: DASH[place], width: 2.4, step: true, y: best },
      { label: `${run.name}: ${run.mean_name}`, colour: INK[place], dash: [2, 3], width: 1.3, y: mean },
    ];
  }

  // compare(stores): what the live page and a report show of two runs or more.
  function compare(owns) {
    const n = Math.max(...owns.map((own) => (own.order.length ? own.order[own.order.length - 1].index + 1 : 0)));
    const lines = owns.flatMap((own, place) => curvesOf(own, place % 2, n));
    const tasks = [...new Set(owns.flatMap((own) => own.data.tasks.map((task) => task.name)))];
    const facts = [
      ["state", (own) => EvoMerge.stateBadge(own.data.run)],
      ["models", (own) => own.data.run.models.join(", ")],
      ["seed", (own) => String(own.data.run.seed)],
      ["candidates", (own) => String(own.data.run.done)],
      ["stopped early", (own) => String(own.data.run.stopped)],
      ["failed", (own) => String(own.data.run.failed)],
      ["duration", (own) => format.duration(own.data.run.seconds)],
      ["items computed", (own) => format.count(own.data.work.items)],
      ["best fitness", (own) => format.score(own.data.run.best)],
      ["mean", (own) => [format.score(own.data.run.mean), h("small", null, own.data.run.mean_name)]],
      [
        "champion",
        (own) =>
          own.champion
            ? h(
                "a",
                { href: EvoMerge.run.pathOf(own.data.run, own.champion), title: own.champion.digest },
                own.champion.name,
              )
            : format.DASH,
      ],
      ["champion's operator", (own) => (own.champion ? own.champion.operator : format.DASH)],
      ["holdout", (own) => format.score(own.champion ? own.champion.holdout : null)],
    ];
    const entry = (own, task) => own.data.per_task.tasks.find((one) => one.task === task);
    const header = (first) =>
      h(
        "thead",
        null,
        h(
          "tr",
          null,
          h("th", { scope: "col" }, first),
          owns.map((own) => h("th", { key: own.data.run.run_id, scope: "col", class: "n" }, own.data.run.name)),
        ),
      );
    const grid = (label, first, rows) =>
      h(
        "div",
        { class: "scroll", role: "region", tabindex: "0", "aria-label": `${label}, table` },
        h(
          "table",
          null,
          header(first),
          h(
            "tbody",
            null,
            rows.map(([name, cell]) =>
              h(
                "tr",
                { key: name },
                h("th", { scope: "row" }, name),
                owns.map((own) => h("td", { key: own.data.run.run_id, class: "n" }, cell(own))),
              ),
            ),
          ),
        ),
      );
    return [
      EvoMerge.run.section(
        "curves",
        "Fitness over the search",
        charts.chart({
          key: "compared",
          label: "Fitness of the runs over each other",
          height: 340,
          form: lines.map((one) => one.label).join(),
          version: owns.map((own) => own.version).join(),
          x: Array.from({ length: n }, (_, i) => i),
          xTicks: true,
          lines,
          xLabel: "candidate, in order of proposal",
          yLabel: "fitness on search items",
        }),
        charts.legend(lines.map((one) => ({ name: one.label, ...one }))),
      ),
      EvoMerge.run.section("facts", "Runs and champions", grid("runs and champions", "", facts)),
      tasks.length > 0 &&
        EvoMerge.run.section(
          "tasks",
          "Champions task by task",
          grid(
            "champions task by task",
            "task",
            tasks.map((task) => [
              task,
              (own) => {
                const one = entry(own, task);
                return one
                  ? [
                      format.score(one.champion),
                      h(
                        "small",
                        null,
                        `${format.signed(one.difference)} from ${one.against} (${own.data.per_task.split})`,
                      ),
                    ]
                  : format.DASH;
              },
            ]),
          ),
        ),
    ];
  }

  EvoMerge.views.compare = (runIds) => {
    const wanted = [...new Set(runIds)].slice(0, 2),
      owns = wanted.map(() => EvoMerge.run.store());
    async function load() {
      await Promise.all(
        wanted.map(async (runId, i) => {
          const own = owns[i],
            at = own.data ? own.data.sequence : 0;
          const answer = await EvoMerge.ask(
            `/api/runs/${encodeURIComponent(runId)}?since=${at}`,
            own.data ? `"${at}-${at}"` : "",
          );
          if (!answer.same) own.take(answer.data);
        }),
      );
      document.title = "EvoMerge: two runs";
    }
    const show = () => [
      h("p", { key: "back", class: "crumbs" }, h("a", { href: "/" }, "All runs")),
      h("h1", { key: "title" }, "Two runs"),
      wanted.length < 2
        ? h("p", { class: "soft" }, "Name two runs: tick them in the list of all runs.")
        : owns.every((own) => own.data)
          ? compare(owns)
          : h("p", { class: "soft" }, "Loading …"),
    ];
    return { load, show, stream: "" };
  };
  EvoMerge.compare = compare;
})();
