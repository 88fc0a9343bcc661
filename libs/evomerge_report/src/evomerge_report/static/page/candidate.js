// A candidate: its recipe, what each source gives to each layer, its answers beside those of the sources.
"use strict";
(() => {
  const { h, format, picker } = EvoMerge;
  const DEEPEST = 46; // per cent of colour in a cell of the heat map, so that its number stays legible

  const fresh = () => ({ split: "", against: "", task: "", outcome: "", text: "" });

  function heat(found) {
    const { sources, rows, exact, sums } = found;
    const top = Math.max(1e-9, ...rows.flatMap((row) => row.shares.map((share) => Math.abs(share || 0))));
    const cell = (share) => {
      if (share === null) return h("td", { class: "n" }, format.DASH);
      const depth = (DEEPEST * Math.abs(share)) / Math.max(1, top);
      return h(
        "td",
        { class: share < 0 ? "n heat below" : "n heat", style: { "--depth": `${depth.toFixed(1)}%` } },
        share.toFixed(2).replace("-", "−"),
      );
    };
    const origins = rows.some((row) => row.origin);
    return [
      h(
        "div",
        {
          key: "map",
          class: "scroll",
          role: "region",
          "aria-label": "what each source gives to each layer",
          tabindex: "0",
        },
        h(
          "table",
          { class: "map" },
          h(
            "thead",
            null,
            h(
              "tr",
              null,
              h("th", { scope: "col" }, "part of the model"),
              sources.map((name, i) => h("th", { key: i, scope: "col", class: "n" }, name)),
              origins && h("th", { scope: "col" }, "taken from"),
            ),
          ),
          h(
            "tbody",
            null,
            [...rows]
              .reverse()
              .map((row, i) =>
                h(
                  "tr",
                  { key: i },
                  h("th", { scope: "row" }, row.name),
                  row.shares.map(cell),
                  origins && h("td", null, row.origin),
                ),
              ),
          ),
        ),
      ),
      h(
        "p",
        { key: "note", class: "soft small" },
        sums
          ? "Factors of what each source changed of the base; the base has what is left of one. "
          : "Shares of each source. ",
        "The top of the model is above. ",
        exact
          ? "This is all that the merge does."
          : "The numbers are what is weighed: what the method thins out, elects or turns is not in them.",
      ),
    ];
  }

  function recipe(data) {
    const found = data.recipe;
    if (!found) return h("p", { class: "soft" }, "The recipe is another version's and cannot be read.");
    return [
      h(
        "ul",
        { key: "words", class: "words" },
        found.words.map((one, i) => h("li", { key: i }, one)),
      ),
      heat(found.shares),
      h(
        "details",
        { key: "yaml" },
        h("summary", null, "Recipe as YAML"),
        h("pre", { role: "region", "aria-label": "recipe as YAML", tabindex: "0" }, h("code", null, found.yaml)),
      ),
    ];
  }

  const spread = (one) =>
    one ? [format.score(one.score), h("small", null, format.interval(one.low, one.high))] : format.DASH;

  function scores(data) {
    const splits = Object.keys(data.scores);
    return EvoMerge.table({
      id: "candidate-tasks",
      label: "scores by task",
      rows: data.tasks,
      key: (one) => one.task,
      columns: [
        { name: "task", heading: true, wide: true, value: (one) => one.task },
        ...splits.flatMap((split) => [
          {
            name: split === "holdout" ? "held-out items" : "search items",
            number: true,
            value: (one) => (one[split] ? one[split].score : null),
            cell: (one) => spread(one[split]),
          },
          {
            name: split === "holdout" ? "held out" : "searched",
            title: "items that were scored",
            number: true,
            value: (one) => (one[split] ? one[split].items : null),
            cell: (one) => (one[split] ? format.count(one[split].items) : format.DASH),
          },
        ]),
      ],
    });
  }

  function against(data, split) {
    const rows = data.against[split].flatMap((one) =>
      Object.entries(one.tasks)
        .filter(([, found]) => found)
        .map(([task, found]) => ({ source: one.name, digest: one.digest, task, ...found })),
    );
    if (!rows.length) return h("p", { class: "soft" }, "No items that a source has answered, too.");
    return EvoMerge.table({
      id: "candidate-against",
      label: "against each source",
      rows,
      key: (one) => `${one.digest} ${one.task}`,
      columns: [
        { name: "source", heading: true, wide: true, value: (one) => one.source },
        { name: "task", value: (one) => one.task },
        {
          name: "difference",
          number: true,
          value: (one) => one.difference,
          cell: (one) => [
            h("span", { class: one.low > 0 ? "won" : one.high < 0 ? "lost" : "" }, format.signed(one.difference)),
            h("small", null, format.interval(one.low, one.high, format.signed)),
          ],
        },
        { name: "won", number: true, value: (one) => one.wins },
        { name: "lost", number: true, value: (one) => one.losses },
        { name: "tied", number: true, value: (one) => one.ties },
      ],
    });
  }

  // Items with both scores, as a reader has narrowed them down.
  function itemRows(data, state, split, rival) {
    const texts = data.items && data.items[split] ? data.items[split] : {},
      rows = [];
    for (const [task, found] of Object.entries(data.scores[split])) {
      if (state.task && state.task !== task) continue;
      found.places.forEach((place, i) => {
        const own = found.scores[0][i],
          other = rival > 0 ? found.scores[rival][i] : null,
          [id, text, right] = (texts[task] || [])[place] || [`#${place}`, "", ""];
        const outcome = own === null || other === null ? "" : own > other ? "won" : own < other ? "lost" : "tied";
        if (state.outcome && state.outcome !== outcome) return;
        if (state.text && !`${id}\n${text}\n${right}`.toLowerCase().includes(state.text.toLowerCase())) return;
        rows.push({ task, place, id, text, right, own, other, outcome });
      });
    }
    return rows;
  }

  function items(data, state, split) {
    const rivals = data.models.slice(1),
      tasks = Object.keys(data.scores[split]);
    const rival = Math.max(
        1,
        data.models.findIndex((one) => one.digest === state.against),
      ),
      name = rivals.length ? data.models[rival].name : "";
    const rows = itemRows(data, state, split, rivals.length ? rival : 0);
    return [
      h(
        "div",
        { key: "filters", class: "tools", role: "group", "aria-label": "which items" },
        rivals.length > 0 &&
          picker(
            "against",
            data.models[rival].digest,
            rivals.map((one) => [one.digest, one.name]),
            (value) => {
              state.against = value;
            },
          ),
        picker("task", state.task, [["", "all"], ...tasks.map((task) => [task, task])], (value) => {
          state.task = value;
        }),
        rivals.length > 0 &&
          picker(
            "answers",
            state.outcome,
            [
              ["", "all"],
              ["won", "won"],
              ["lost", "lost"],
              ["tied", "tied"],
            ],
            (value) => {
              state.outcome = value;
            },
          ),
        h(
          "label",
          { key: "text" },
          "text ",
          h("input", {
            type: "search",
            value: state.text,
            on: {
              input: (event) => {
                state.text = event.target.value;
                EvoMerge.redraw();
              },
            },
          }),
        ),
        h("span", { key: "count", class: "soft", role: "status" }, `${format.count(rows.length)} items`),
      ),
      EvoMerge.table({
        id: "candidate-items",
        label: "items",
        rows,
        key: (one) => `${one.task} ${one.place}`,
        columns: [
          {
            name: "item",
            heading: true,
            wide: true,
            value: (one) => one.id,
            cell: (one) => [one.id, h("small", null, one.task)],
          },
          {
            name: "asked",
            wide: true,
            value: (one) => one.text,
            cell: (one) => [
              h("span", { class: "asked" }, one.text || format.DASH),
              one.right && h("small", null, `right: ${one.right}`),
            ],
          },
          { name: "candidate", number: true, value: (one) => one.own, cell: (one) => format.score(one.own) },
          ...(rivals.length
            ? [
                {
                  name: "source",
                  title: name,
                  number: true,
                  value: (one) => one.other,
                  cell: (one) => format.score(one.other),
                },
                {
                  name: "answer",
                  value: (one) => one.outcome,
                  cell: (one) => h("span", { class: one.outcome }, one.outcome || format.DASH),
                },
              ]
            : []),
        ],
      }),
    ];
  }

  // What models wrote, side by side; `models` are names, `texts` one each (null: not known).
  function sideBySide(models, texts, about) {
    return h(
      "div",
      { class: "beside" },
      models.map((name, i) =>
        h(
          "figure",
          { key: i },
          h("figcaption", null, name),
          h(
            "pre",
            { tabindex: "0", role: "region", "aria-label": `what ${name} wrote: ${about}` },
            texts[i] === null || texts[i] === undefined ? "not recorded" : texts[i] || "(nothing)",
          ),
        ),
      ),
    );
  }

  function answers(data) {
    const shown = data.answers.filter((one) => one.texts.some((text) => text !== null));
    if (!shown.length)
      return h(
        "p",
        { class: "soft" },
        "No answers were recorded: its tasks generate nothing, or their scores were known already.",
      );
    const names = data.models.map((one) => one.name);
    return shown.map((one) => {
      const [id, text, right] = ((data.items && data.items[one.split] && data.items[one.split][one.task]) || [])[
        one.place
      ] || [`#${one.place}`, "", ""];
      return h(
        "article",
        { key: `${one.split} ${one.task} ${one.place}`, class: "sample" },
        h("h3", null, `${one.task}, ${one.split === "holdout" ? "held-out item" : "item"} ${id}`),
        text &&
          h(
            "pre",
            {
              class: "asked",
              tabindex: "0",
              role: "region",
              "aria-label": `what was asked: ${one.task} ${one.split} ${id}`,
            },
            text,
          ),
        right && h("p", { class: "soft small" }, `right: ${right}`),
        sideBySide(names, one.texts, `${one.task} ${one.split} ${id}`),
      );
    });
  }

  function relatives(data, list, words) {
    if (!list.length) return h("p", { class: "soft" }, words);
    return EvoMerge.table({
      id: `relatives-${words}`,
      label: words === "No parents." ? "parents" : "children",
      rows: list,
      key: (one) => one.digest,
      columns: [
        {
          name: "candidate",
          heading: true,
          wide: true,
          value: (one) => one.name,
          cell: (one) => EvoMerge.run.link(data.run, one, one.name),
        },
        { name: "operator", value: (one) => one.operator },
        { name: "fitness", number: true, value: (one) => one.fitness, cell: (one) => format.score(one.fitness) },
      ],
    });
  }

  function show(data, state) {
    const { run, candidate: own } = data,
      splits = Object.keys(data.scores),
      section = EvoMerge.run.section;
    const split = splits.includes(state.split)
      ? state.split
      : splits.includes("holdout") && Object.keys(data.scores.holdout).length
        ? "holdout"
        : splits[0];
    const facts = [
      own.operator && `proposed by ${own.operator}`,
      `candidate ${own.index}`,
      own.rank && `rank ${own.rank}`,
      `generation ${own.generation}`,
      own.state,
    ]
      .filter(Boolean)
      .join(" · ");
    const tile = (value, words) => h("div", { key: words, class: "tile" }, h("b", null, value), h("span", null, words));
    return [
      h("p", { key: "back", class: "crumbs" }, h("a", { href: EvoMerge.run.home(run) }, run.name)),
      h(
        EvoMerge.home ? "h2" : "h1",
        { key: "title" },
        own.name,
        " ",
        own.digest === run.champion && h("span", { class: "badge good" }, run.ended ? "champion" : "best so far"),
      ),
      h("p", { key: "facts", class: "soft" }, facts, " · ", format.digest(own.digest)),
      h(
        "div",
        { key: "tiles", class: "tiles" },
        own.fitness !== null
          ? tile(format.score(own.fitness), "fitness, search items")
          : tile(
              own.estimate === null ? format.DASH : `≈ ${format.score(own.estimate)}`,
              "estimate from some of the items",
            ),
        own.holdout !== null && tile(format.score(own.holdout), "fitness, held-out items"),
      ),
      section("recipe", "Recipe", recipe(data)),
      section("scores", "Scores", scores(data)),
      splits.length > 1 &&
        h(
          "div",
          { key: "split", class: "tools" },
          picker(
            "Compare on",
            split,
            [
              ["search", "search items"],
              ["holdout", "held-out items"],
            ],
            (value) => {
              state.split = value;
            },
          ),
        ),
      data.models.length > 1 && section("against", "Against each source", against(data, split)),
      section("items", "Item by item", items(data, state, split)),
      section("answers", "Answers side by side", answers(data)),
      section("parents", "Parents", relatives(data, data.parents, "No parents.")),
      section("children", "Children", relatives(data, data.children, "No children.")),
    ];
  }

  EvoMerge.views.candidate = (runId, digest) => {
    const state = fresh(),
      path = `/api/runs/${encodeURIComponent(runId)}/candidates/${encodeURIComponent(digest)}`;
    let data = null,
      tag = "";
    async function load() {
      const answer = await EvoMerge.ask(path, tag);
      if (answer.same) return;
      ({ data, tag } = answer);
      document.title = `EvoMerge: ${data.candidate.name}`;
    }
    return {
      load,
      show: () => (data ? show(data, state) : h("p", { class: "soft" }, "Loading …")),
      stream: `?run=${encodeURIComponent(runId)}`,
    };
  };

  Object.assign(EvoMerge, { candidate: { show, fresh, sideBySide } });
})();
