// The list of runs: sorted, filtered, two of them compared.
"use strict";
(() => {
  const { h, format } = EvoMerge;

  EvoMerge.views.runs = () => {
    let runs = null,
      tag = "";
    const chosen = new Set(),
      filter = { text: "", state: "" };

    async function load() {
      const answer = await EvoMerge.ask("/api/runs", tag);
      if (!answer.same) {
        runs = answer.data.runs;
        tag = answer.tag;
      }
      document.title = "EvoMerge: runs";
    }

    function matches(run) {
      const words = filter.text.toLowerCase().split(/\s+/).filter(Boolean);
      const text = [run.name, run.run_id, run.status, run.reason, ...run.models].join(" ").toLowerCase();
      return words.every((word) => text.includes(word)) && (!filter.state || run.status === filter.state);
    }

    function pick(run) {
      return h("input", {
        type: "checkbox",
        "aria-label": `compare ${run.name}`,
        checked: chosen.has(run.run_id),
        disabled: !chosen.has(run.run_id) && chosen.size >= 2,
        on: {
          change: (event) => {
            if (event.target.checked) chosen.add(run.run_id);
            else chosen.delete(run.run_id);
            EvoMerge.redraw();
          },
        },
      });
    }

    const columns = [
      { name: "compare", plain: true, value: () => null, cell: pick },
      {
        name: "run",
        wide: true,
        heading: true,
        value: (run) => run.name,
        cell: (run) => [
          h("a", { href: `/runs/${encodeURIComponent(run.run_id)}` }, run.name),
          run.name !== run.run_id && h("small", null, run.run_id),
        ],
      },
      { name: "state", value: (run) => run.status, cell: (run) => EvoMerge.stateBadge(run) },
      {
        name: "best",
        title: "best fitness on search items",
        number: true,
        value: (run) => run.best,
        cell: (run) => format.score(run.best),
      },
      {
        name: "mean",
        title: "mean fitness over the last generation's places",
        number: true,
        value: (run) => run.mean,
        cell: (run) => h("span", { title: run.mean_name }, format.score(run.mean)),
      },
      {
        name: "candidates",
        number: true,
        value: (run) => run.done,
        cell: (run) => (run.budget ? `${run.done} / ${run.budget}` : String(run.done)),
      },
      { name: "failed", number: true, value: (run) => run.failed },
      { name: "duration", number: true, value: (run) => run.seconds, cell: (run) => format.duration(run.seconds) },
      {
        name: "started",
        value: (run) => run.started_at,
        cell: (run) =>
          h("time", { datetime: new Date(1000 * run.started_at).toISOString() }, format.moment(run.started_at)),
      },
      { name: "models", value: (run) => run.models.join(", "), wide: true },
    ];

    function show() {
      if (!runs) return h("p", { class: "soft" }, "Loading …");
      const found = runs.filter(matches),
        two = [...chosen];
      const states = [...new Set(runs.map((run) => run.status))].sort();
      return [
        h("h1", { key: "title" }, "Runs"),
        runs.length === 0
          ? h(
              "p",
              { key: "none", class: "soft" },
              "No run yet. ",
              h("code", null, "evomerge run"),
              " starts one, and it appears here by itself.",
            )
          : [
              h(
                "div",
                { key: "tools", class: "tools" },
                h(
                  "label",
                  null,
                  "Filter ",
                  h("input", {
                    type: "search",
                    placeholder: "name, model, state",
                    on: {
                      input: (event) => {
                        filter.text = event.target.value;
                        EvoMerge.redraw();
                      },
                    },
                  }),
                ),
                h(
                  "label",
                  null,
                  "State ",
                  h(
                    "select",
                    {
                      on: {
                        change: (event) => {
                          filter.state = event.target.value;
                          EvoMerge.redraw();
                        },
                      },
                    },
                    h("option", { key: "all", value: "" }, "all"),
                    states.map((one) => h("option", { key: one, value: one }, one)),
                  ),
                ),
                two.length === 2
                  ? h(
                      "a",
                      {
                        key: "go",
                        class: "button",
                        href: `/compare?${two.map((one) => `run=${encodeURIComponent(one)}`).join("&")}`,
                      },
                      "Compare the two",
                    )
                  : h(
                      "span",
                      { key: "hint", class: "soft" },
                      two.length === 1 ? "Tick one more to compare" : "Tick two runs to compare them",
                    ),
                h("span", { key: "count", class: "soft right" }, `${found.length} of ${runs.length}`),
              ),
              EvoMerge.table({
                id: "runs",
                label: "runs",
                columns,
                rows: found,
                sort: "started",
                down: true,
                key: (run) => run.run_id,
              }),
            ],
      ];
    }
    return { load, show, stream: "" };
  };

  const KIND = {
    running: "good",
    finished: "",
    failed: "bad",
    paused: "wait",
    cancelled: "wait",
    preparing: "wait",
    finishing: "good",
  };
  EvoMerge.stateBadge = (run) =>
    h("span", { class: `badge ${KIND[run.status] || ""}`, title: run.reason || undefined }, run.status);
})();
