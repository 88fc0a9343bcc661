// A run: how it stands, its candidates, and how the search got there.
"use strict";
(() => {
  const { h, format, charts, picker } = EvoMerge;

  // What is known of a run: the view's data, with candidates as objects; `take` brings in what has changed.
  function store() {
    const own = {
      rows: new Map(),
      means: new Map(),
      generations: new Map(),
      failures: new Map(),
      data: null,
      order: [],
      memo: EvoMerge.memory(),
    };
    own.take = (data) => {
      if (!data.since) for (const one of [own.rows, own.means, own.generations, own.failures]) one.clear();
      for (const one of data.generations) own.generations.set(one.generation, one);
      for (const one of data.failures) own.failures.set(one.sequence, one);
      const { columns, rows } = data.candidates;
      for (const row of rows) {
        const one = {};
        columns.forEach((name, i) => {
          one[name] = row[i];
        });
        own.rows.set(one.index, one);
      }
      for (const index of [...own.means.keys()]) if (index >= data.mean.from) own.means.delete(index);
      data.mean.index.forEach((index, i) => own.means.set(index, data.mean.value[i]));
      own.data = data;
      own.order = [...own.rows.values()].sort((a, b) => a.index - b.index);
      own.scored = own.order.filter((one) => one.fitness !== null);
      own.ranked = [...own.scored].sort((a, b) => b.fitness - a.fitness || a.index - b.index);
      own.ranked.forEach((one, i) => {
        one.rank = i + 1;
      });
      own.champion = own.order.find((one) => one.digest === data.run.champion) || null;
      own.version = String(data.sequence);
    };
    return own;
  }

  function pathOf(run, one) {
    return EvoMerge.pathOf
      ? EvoMerge.pathOf(one)
      : `/runs/${encodeURIComponent(run.run_id)}/candidates/${encodeURIComponent(one.digest)}`;
  }

  // A candidate by name, with its page where it has one.
  function link(run, one, words) {
    const href = pathOf(run, one);
    return href ? h("a", { href }, words) : words;
  }
  function home(run) {
    return EvoMerge.home || `/runs/${encodeURIComponent(run.run_id)}`;
  }

  function about(one) {
    const value =
      one.fitness !== null
        ? format.score(one.fitness)
        : one.estimate !== null
          ? `≈ ${format.score(one.estimate)} (estimate)`
          : one.state;
    return [
      h("b", null, one.name),
      h("span", null, `${one.operator}${one.index >= 0 ? `, candidate ${one.index}` : ""}`),
      h("span", null, `fitness ${value} ${format.interval(one.low, one.high)}`),
    ];
  }

  // What the chart of fitness draws: the same for every choice of a reader.
  function curve(own) {
    const { order } = own,
      n = order.length ? order[order.length - 1].index + 1 : 0;
    const best = new Array(n).fill(null),
      mean = new Array(n).fill(null),
      source = new Array(n).fill(null);
    let top = null;
    const bar = Math.max(...own.scored.filter((one) => one.operator === "source").map((one) => one.fitness), -Infinity);
    for (const one of order) {
      if (one.fitness !== null && (top === null || one.fitness > top)) top = one.fitness;
      best[one.index] = top;
    }
    for (const [index, value] of own.means) mean[index] = value;
    if (bar > -Infinity && n) {
      source[0] = bar;
      source[n - 1] = bar;
    }
    const points = order
      .filter((one) => one.fitness !== null || one.estimate !== null)
      .map((one) => ({
        x: one.index,
        y: one.fitness !== null ? one.fitness : one.estimate,
        low: one.low,
        high: one.high,
        look: own.data.operators[one.operator],
        hollow: one.fitness === null,
        row: one,
      }));
    return { n, x: Array.from({ length: n }, (_, i) => i), best, mean, source, points };
  }

  function fitness(own, hidden, toggle) {
    const { data, order } = own,
      { x, best, mean, source, points: all } = own.memo("curve", [own.version], () => curve(own));
    const points = hidden.size ? all.filter((one) => !hidden.has(one.row.operator)) : all;
    const lines = [
      { label: "best so far", colour: "--good", width: 2.2, step: true, y: best },
      { label: data.run.mean_name, colour: "--bad", width: 1.8, dash: [6, 3], y: mean },
      { label: "best source", colour: "--soft", width: 1.4, dash: [2, 3], y: source },
    ];
    const counts = {};
    for (const one of order)
      if (one.fitness !== null || one.estimate !== null) counts[one.operator] = (counts[one.operator] || 0) + 1;
    return [
      charts.chart({
        key: "fitness",
        label: "Fitness over the search",
        height: 340,
        form: "fitness",
        version: `${own.version} ${[...hidden].join()}`,
        x,
        xTicks: true,
        lines,
        points,
        describe: (one) => about(one.row),
        href: (one) => pathOf(data.run, one.row),
        marked:
          own.champion && own.champion.fitness !== null ? [{ x: own.champion.index, y: own.champion.fitness }] : [],
        xLabel: "candidate, in order of proposal",
        yLabel: "fitness on search items",
      }),
      charts.legend([
        ...lines.map((one) => ({ name: one.label, ...one })),
        { name: "champion", star: true, colour: "--bad" },
        ...Object.keys(data.operators)
          .filter((name) => counts[name])
          .map((name) => ({
            name: `${name} (${counts[name]})`,
            look: data.operators[name],
            hidden: hidden.has(name),
            toggle: () => toggle(name),
          })),
      ]),
    ];
  }

  function objectives(own) {
    return [
      { name: "fitness", of: (one) => one.fitness },
      ...own.data.tasks.map((task, i) => ({ name: task.name, of: (one) => one.scores[i] })),
    ];
  }

  // The points that no other matches or beats in both: from the highest x down, each that is higher than all before.
  function frontOf(points) {
    const found = [];
    let top = -Infinity;
    for (const one of [...points].sort((a, b) => b.x - a.x || b.y - a.y))
      if (one.y > top) {
        found.push(one);
        top = one.y;
      }
    return found.reverse();
  }

  function pareto(own, axes, hidden) {
    const all = objectives(own);
    if (all.length < 3) return [h("p", { class: "soft" }, "The suite has one task: no trade-off.")];
    const first = all.find((one) => one.name === axes.x) || all[1],
      second = all.find((one) => one.name === axes.y) || all[2];
    const scored = own.scored.filter((one) => first.of(one) !== null && second.of(one) !== null);
    const whole = scored.map((one) => ({
      x: first.of(one),
      y: second.of(one),
      look: own.data.operators[one.operator],
      row: one,
    }));
    const points = whole.filter((one) => !hidden.has(one.row.operator)).sort((a, b) => a.x - b.x);
    const front = frontOf(whole),
      mine = whole.find((one) => one.row === own.champion);
    const names = all.map((one) => [one.name, one.name]);
    return [
      h(
        "div",
        { key: "axes", class: "tools" },
        picker("across", first.name, names, (name) => {
          axes.x = name;
        }),
        picker("up", second.name, names, (name) => {
          axes.y = name;
        }),
        h("span", { class: "soft" }, `${front.length} on the front of the two`),
      ),
      charts.chart({
        key: "pareto",
        label: `Trade-off between ${first.name} and ${second.name}`,
        height: 340,
        form: `${first.name} ${second.name}`,
        version: `${own.version} ${[...hidden].join()}`,
        x: points.map((one) => one.x),
        lines: [{ label: second.name, colour: "--soft", width: 0, y: points.map((one) => one.y) }],
        points,
        stairs: front.map((one) => [one.x, one.y]),
        marked: mine ? [mine] : [],
        describe: (one) => [
          ...about(one.row),
          h("span", null, `${first.name} ${format.score(one.x)}, ${second.name} ${format.score(one.y)}`),
        ],
        href: (one) => pathOf(own.data.run, one.row),
        xLabel: `${first.name} (search)`,
        yLabel: `${second.name} (search)`,
      }),
    ];
  }

  const SET = [
    ["#0072b2", "#4ba3e3"],
    ["#e69f00", "#f2b33d"],
    ["#009e73", "#2fc89c"],
    ["#cc79a7", "#e39bc3"],
    ["#56b4e9", "#8fd0f5"],
    ["#d55e00", "#f58a4b"],
    ["#666666", "#b0b0b0"],
    ["#b8a800", "#e6d64a"],
  ];
  const DASHES = [[], [7, 3], [2, 3], [10, 3, 2, 3]];
  function hue(i) {
    return SET[i % SET.length][charts.isDark() ? 1 : 0];
  }

  function curves(key, label, own, x, lines, yLabel, extra) {
    return [
      charts.chart({
        key,
        label,
        height: 230,
        form: `${lines.map((one) => one.label).join()} ${charts.isDark()}`,
        version: own.version,
        x,
        xTicks: true,
        lines,
        points: undefined,
        xLabel: "candidate, in order of proposal",
        yLabel,
        ...extra,
      }),
      lines.length > 1 && charts.legend(lines.map((one) => ({ name: one.label, ...one }))),
    ];
  }

  function drift(own, kind) {
    const found = own.data.drift,
      generations = [...own.generations.values()],
      middles = found.stretches.map((one) => (one + 0.5) * found.width);
    const styled = (name, i, y) => ({
      label: name,
      colour: hue(i),
      dash: DASHES[Math.floor(i / SET.length) % DASHES.length],
      width: 2,
      y,
    });
    const shares = (table) => Object.keys(table).map((name, i) => styled(name, i, table[name]));
    const known = own.data.operators,
      operators = shares(found.operators).map((one) =>
        known[one.label] ? { ...one, colour: charts.colour(known[one.label]) } : one,
      );
    const genes = Object.keys(found.genes),
      weights = genes.filter((name) => name.startsWith("weight")),
      others = genes.filter((name) => !name.startsWith("weight") && name !== "layers");
    const means = (names) => names.map((name, i) => styled(name, i, found.genes[name]));
    const block = (title, content) => h("figure", { key: title }, h("figcaption", null, title), content);
    return h(
      "div",
      { class: "grid two" },
      generations.length > 0 &&
        block(
          "Diversity",
          curves(
            "diversity",
            "Diversity of the population",
            own,
            generations.map((one) => one.evaluated),
            [{ label: "mean pairwise distance", colour: hue(0), width: 2, y: generations.map((one) => one.diversity) }],
            "genome distance, 0 to 1",
            { yMin: 0 },
          ),
        ),
      middles.length > 0 &&
        block(
          "Operators",
          curves("operators", "Share of each operator", own, middles, operators, "share of candidates", {
            yFixed: [0, 1.02],
          }),
        ),
      middles.length > 0 &&
        block(
          "Methods",
          curves("methods", "Share of each merge method", own, middles, shares(found.methods), "share of candidates", {
            yFixed: [0, 1.02],
          }),
        ),
      weights.length > 0 &&
        block("Weights", curves("weights", "Mean weight of each source", own, middles, means(weights), "mean weight")),
      others.length > 0 &&
        block(
          "Other parameters",
          curves("others", "Mean of the other parameters", own, middles, means(others), "mean"),
        ),
    );
  }

  function leaderboard(own) {
    const { data } = own,
      tasks = data.tasks;
    const columns = [
      { name: "rank", number: true, value: (one) => one.rank, cell: (one) => String(one.rank) },
      {
        name: "candidate",
        heading: true,
        value: (one) => one.name,
        cell: (one) => h("a", { class: "name", href: pathOf(data.run, one), title: one.digest }, one.name),
      },
      {
        name: "fitness",
        title: "on search items, with its 95% interval",
        number: true,
        value: (one) => one.fitness,
        cell: (one) => [format.score(one.fitness), h("small", null, format.interval(one.low, one.high))],
      },
      {
        name: "operator",
        value: (one) => one.operator,
        cell: (one) => h("span", { class: "op" }, charts.mark(data.operators[one.operator]), one.operator),
      },
      { name: "method", value: (one) => one.method },
      {
        name: "gen.",
        title: "generation",
        number: true,
        value: (one) => one.generation,
        cell: (one) => String(one.generation),
      },
      ...tasks.map((task, i) => ({
        name: task.name,
        number: true,
        value: (one) => one.scores[i],
        cell: (one) => format.score(one.scores[i]),
      })),
      ...(own.ranked.some((one) => one.holdout !== null)
        ? [{ name: "holdout", number: true, value: (one) => one.holdout, cell: (one) => format.score(one.holdout) }]
        : []),
    ];
    return EvoMerge.table({
      id: "leaderboard",
      label: "leaderboard",
      columns,
      rows: own.ranked,
      sort: "rank",
      down: false,
      key: (one) => one.index,
      first: (one) => one === own.champion,
    });
  }

  function stopped(own) {
    const rows = own.order.filter((one) => one.state === "stopped");
    if (!rows.length) return null;
    return section(
      "stopped",
      "Stopped early",
      h(
        "p",
        { class: "soft" },
        "A paired test on some of the items said that these have no chance. What they score is an estimate.",
      ),
      EvoMerge.table({
        id: "stopped",
        label: "candidates that were stopped",
        rows,
        sort: "candidate",
        down: true,
        key: (one) => one.index,
        columns: [
          {
            name: "candidate",
            heading: true,
            value: (one) => one.index,
            cell: (one) => h("a", { href: pathOf(own.data.run, one), title: one.digest }, one.name),
          },
          { name: "operator", value: (one) => one.operator },
          { name: "items", number: true, value: (one) => one.items },
          {
            name: "estimate",
            number: true,
            value: (one) => one.estimate,
            cell: (one) => [format.score(one.estimate), h("small", null, format.interval(one.low, one.high))],
          },
        ],
      }),
    );
  }

  function perTask(own) {
    const { per_task: found, run } = own.data;
    if (!found.tasks.length) return null;
    const lost = found.tasks.filter((one) => one.worse),
      won = found.tasks.filter((one) => one.better);
    const names = (some) => some.map((one) => one.task).join(", ");
    const words =
      found.split === "holdout"
        ? "on held-out items, which selection never saw"
        : "on search items, which selection saw: the champion looks better here than it is";
    return section(
      "tasks",
      "Champion and the best source of each task",
      h(
        "p",
        { class: lost.length ? "verdict bad" : won.length ? "verdict good" : "verdict" },
        lost.length
          ? `The champion is worse than a specialist on ${names(lost)}`
          : "The champion is worse than no specialist",
        won.length ? ` and better than the best one on ${names(won)}` : " and better than the best one on no task",
        ", beyond the 95% intervals; ",
        h("span", { class: "soft" }, `${words}.`),
      ),
      EvoMerge.table({
        id: "tasks",
        label: "champion and the best source of each task",
        rows: found.tasks,
        key: (one) => one.task,
        columns: [
          { name: "task", heading: true, value: (one) => one.task },
          { name: "champion", number: true, value: (one) => one.champion, cell: (one) => format.score(one.champion) },
          {
            name: "best source",
            number: true,
            value: (one) => one.source,
            cell: (one) => [format.score(one.source), h("small", null, one.against)],
          },
          {
            name: "difference",
            number: true,
            value: (one) => one.difference,
            cell: (one) => [
              h("span", { class: one.worse ? "lost" : one.better ? "won" : "" }, format.signed(one.difference)),
              h("small", null, format.interval(one.low, one.high, format.signed)),
            ],
          },
          { name: "won", title: "items that the champion answers better", number: true, value: (one) => one.wins },
          { name: "lost", title: "items that it answers worse", number: true, value: (one) => one.losses },
          { name: "alike", number: true, value: (one) => one.ties },
        ],
      }),
      h("p", { class: "soft small" }, found.note),
    );
  }

  function work(own) {
    const { work: found, live, run } = own.data,
      queues = (live && live.queues) || {};
    const tile = (value, words) => h("div", { key: words, class: "tile" }, h("b", null, value), h("span", null, words));
    return section(
      "work",
      run.ended ? "Work done" : "Work now",
      h(
        "div",
        { class: "tiles" },
        tile(found.per_minute === null ? format.DASH : found.per_minute.toFixed(1), "candidates a minute"),
        !run.ended && tile(format.duration(found.left_seconds), "left at this pace"),
        tile(format.count(found.items), "items computed"),
        tile(format.count(found.cached), "evaluations known already"),
        tile(format.duration(found.kinds.reduce((sum, one) => sum + one.seconds, 0)), "computing, all together"),
      ),
      EvoMerge.table({
        id: "kinds",
        label: "work by kind",
        rows: found.kinds,
        key: (one) => one.kind,
        columns: [
          { name: "work", heading: true, value: (one) => one.kind },
          { name: "done", number: true, value: (one) => one.jobs },
          ...(run.ended
            ? []
            : [
                {
                  name: "candidates waiting",
                  title: "or in work, of this run",
                  number: true,
                  value: (one) => one.waiting,
                },
                {
                  name: "queue",
                  title: "jobs of all runs that wait or are in work",
                  number: true,
                  value: (one) => queues[one.kind],
                  cell: (one) => (queues[one.kind] === undefined ? format.DASH : String(queues[one.kind])),
                },
              ]),
          {
            name: "seconds each",
            title: "mean of the latest twenty",
            number: true,
            value: (one) => one.latest,
            cell: (one) => (one.latest === null ? format.DASH : one.latest.toFixed(2)),
          },
          { name: "computing", number: true, value: (one) => one.seconds, cell: (one) => format.duration(one.seconds) },
        ],
      }),
      found.workers.length > 0 &&
        EvoMerge.table({
          id: "workers",
          label: "workers",
          rows: found.workers,
          key: (one) => `${one.worker} ${one.kind}`,
          columns: [
            { name: "worker", heading: true, wide: true, value: (one) => one.worker },
            { name: "work", value: (one) => one.kind },
            { name: "jobs", number: true, value: (one) => one.jobs },
            {
              name: "computing",
              number: true,
              value: (one) => one.seconds,
              cell: (one) => format.duration(one.seconds),
            },
            { name: "last result", value: (one) => one.last_at, cell: (one) => format.moment(one.last_at) },
          ],
        }),
      found.devices.length > 0 && h("p", null, "Devices: ", found.devices.join("; ")),
    );
  }

  function sources(own) {
    const rows = own.order.filter((one) => one.operator === "source"),
      models = Object.fromEntries(own.data.models.map((one) => [one.name, one]));
    if (!rows.length) return null;
    const of = (one) => models[one.name] || {};
    return section(
      "sources",
      "Sources",
      EvoMerge.table({
        id: "sources",
        label: "sources",
        rows,
        key: (one) => one.index,
        columns: [
          {
            name: "model",
            heading: true,
            wide: true,
            value: (one) => one.name,
            cell: (one) => [h("a", { href: pathOf(own.data.run, one) }, one.name), h("small", null, of(one).reference)],
          },
          { name: "architecture", value: (one) => of(one).architecture },
          {
            name: "parameters",
            number: true,
            value: (one) => of(one).parameters,
            cell: (one) => format.size(of(one).parameters),
          },
          {
            name: "commit",
            value: (one) => of(one).commit,
            cell: (one) => (of(one).commit ? format.digest(of(one).commit) : "local folder"),
          },
          { name: "licence", value: (one) => of(one).licence || format.DASH },
          { name: "search", number: true, value: (one) => one.fitness, cell: (one) => format.score(one.fitness) },
          { name: "holdout", number: true, value: (one) => one.holdout, cell: (one) => format.score(one.holdout) },
        ],
      }),
    );
  }

  function failures(own) {
    const rows = [...own.failures.values()].sort((a, b) => b.sequence - a.sequence);
    if (!rows.length) return null;
    return section(
      "failures",
      "Failures",
      EvoMerge.table({
        id: "failures",
        label: "failures",
        rows,
        key: (one) => one.sequence,
        columns: [
          { name: "job", heading: true, value: (one) => `${one.kind}${one.split ? ` (${one.split})` : ""}` },
          {
            name: "of",
            value: (one) => one.reference || one.digest,
            cell: (one) => (one.reference ? h("code", null, one.reference) : format.digest(one.digest)),
            wide: true,
          },
          { name: "error", value: (one) => one.type },
          { name: "reason", wide: true, value: (one) => one.message },
        ],
      }),
    );
  }

  function section(id, title, ...content) {
    return h(
      "section",
      { key: id, id, "aria-labelledby": `${id}-title` },
      h("h2", { id: `${id}-title` }, title),
      content,
    );
  }

  function controls(own, state) {
    const { run, live } = own.data;
    if (!live || !live.control || run.ended) return null;
    const act = (action) => async () => {
      state.asked = "";
      state.said = `${action} …`;
      EvoMerge.redraw();
      try {
        await EvoMerge.send(`/api/runs/${encodeURIComponent(run.run_id)}/${action}`);
        state.said = `${action}: asked`;
      } catch (error) {
        state.said = error.message;
      }
      EvoMerge.redraw();
    };
    const button = (action, words, sure) =>
      h(
        "button",
        {
          key: action,
          type: "button",
          class: sure ? "careful" : "",
          on: {
            click: sure
              ? () => {
                  state.asked = action;
                  EvoMerge.redraw();
                }
              : act(action),
          },
        },
        words,
      );
    return h(
      "div",
      { key: "controls", class: "tools", role: "group", "aria-label": "control this run" },
      run.status === "paused" ? button("resume", "Resume") : button("pause", "Pause"),
      state.asked
        ? [
            h(
              "span",
              { key: "sure" },
              state.asked === "finish"
                ? "The best so far becomes the champion. Sure?"
                : "The run ends without a champion. Sure?",
            ),
            h(
              "button",
              { key: "yes", type: "button", class: "careful", on: { click: act(state.asked) } },
              `Yes, ${state.asked}`,
            ),
            h(
              "button",
              {
                key: "no",
                type: "button",
                class: "quiet",
                on: {
                  click: () => {
                    state.asked = "";
                    EvoMerge.redraw();
                  },
                },
              },
              "No",
            ),
          ]
        : [button("finish", "Finish now", true), button("cancel", "Cancel", true)],
      h("span", { key: "said", class: "soft", role: "status" }, state.said),
    );
  }

  function head(own, state) {
    const { run, exports: made, live } = own.data;
    const tile = (value, words, title) =>
      h("div", { key: words, class: "tile", title }, h("b", null, value), h("span", null, words));
    const done = run.evaluated + run.stopped;
    return [
      live && h("p", { key: "back", class: "crumbs" }, h("a", { href: "/" }, "All runs")),
      h("h1", { key: "title" }, run.name, " ", EvoMerge.stateBadge(run)),
      h(
        "p",
        { key: "sub", class: "soft" },
        [run.reason, run.models.join(" + "), `seed ${run.seed}`, `started ${format.moment(run.started_at)}`]
          .filter(Boolean)
          .join(" · "),
      ),
      controls(own, state),
      !run.stopped &&
        run.budget > 0 &&
        h("progress", {
          key: "progress",
          max: run.budget,
          value: Math.min(done, run.budget),
          "aria-label": "candidates scored of the budget",
        }),
      h(
        "div",
        { key: "tiles", class: "tiles" },
        tile(`${done}${run.budget && !run.stopped ? ` / ${run.budget}` : ""}`, "candidates scored"),
        run.stopped > 0 && tile(String(run.stopped), "of these stopped early"),
        tile(format.score(run.best), "best fitness"),
        tile(
          format.score(run.mean),
          run.mean_name,
          "over the candidates with a score among the last generation's places",
        ),
        tile(String(run.generation), "generation"),
        tile(String(run.failed), "failed"),
        tile(format.duration(run.seconds), run.ended ? "in all" : "so far"),
      ),
      own.champion &&
        h(
          "p",
          { key: "champion" },
          "Champion ",
          h("a", { href: pathOf(run, own.champion) }, own.champion.name),
          ` by ${own.champion.operator}, search ${format.score(own.champion.fitness)}`,
          own.champion.holdout !== null && `, holdout ${format.score(own.champion.holdout)}`,
          "  ",
          format.digest(own.champion.digest),
          live &&
            run.ended && [
              " · ",
              h("a", { href: `/runs/${encodeURIComponent(run.run_id)}/files/report/index.html` }, "the whole report"),
            ],
        ),
      made.length > 0 &&
        h(
          "p",
          { key: "exports", class: "soft" },
          "Exported: ",
          made.map((one, i) => [i ? ", " : "", one.format, " ", h("code", null, one.uri)]),
        ),
    ];
  }

  // Everything about a run, from its store; `state` is what a reader chose.
  function show(own, state) {
    const { data, memo } = own,
      byIndex = own.rows,
      hidden = [...state.hidden].join(),
      { choices } = EvoMerge;
    const on = (name, chosen, describe) => memo(name, [own.version, ...chosen], describe);
    const toggle = (name) => {
      if (state.hidden.has(name)) state.hidden.delete(name);
      else state.hidden.add(name);
      EvoMerge.redraw();
    };
    return [
      head(own, state),
      own.order.length > 0 &&
        on("fitness", [hidden, charts.choices("fitness")], () =>
          section("fitness", "Fitness over the search", fitness(own, state.hidden, toggle)),
        ),
      on("tasks", [choices("tasks")], () => perTask(own)),
      data.live && data.live.try && EvoMerge.tryIt(data.run),
      own.ranked.length > 0 &&
        on("leaderboard", [choices("leaderboard")], () => section("leaderboard", "Leaderboard", leaderboard(own))),
      own.scored.length > 1 &&
        on("pareto", [hidden, state.axes.x, state.axes.y, charts.choices("pareto")], () =>
          section("pareto", "Trade-off", pareto(own, state.axes, state.hidden)),
        ),
      (own.generations.size > 0 || data.drift.stretches.length > 1) &&
        on("drift", [charts.choices("diversity", "operators", "methods", "weights", "others")], () =>
          section("drift", "How the search moves", drift(own)),
        ),
      own.scored.length > 0 &&
        on("lineage", [], () =>
          section(
            "lineage",
            "Lineage",
            EvoMerge.lineage({
              champion: own.champion,
              best: own.ranked,
              byIndex,
              looks: data.operators,
              href: (one) => pathOf(data.run, one),
            }),
          ),
        ),
      on("sources", [choices("sources")], () => sources(own)),
      on("stopped", [choices("stopped")], () => stopped(own)),
      on("work", [choices("kinds", "workers")], () => work(own)),
      on("failures", [choices("failures")], () => failures(own)),
      data.notes.length > 0 &&
        section(
          "notes",
          "Notes",
          h(
            "ul",
            null,
            data.notes.map((note) => h("li", { key: note }, note)),
          ),
        ),
    ];
  }

  const fresh = () => ({ hidden: new Set(), axes: {}, asked: "", said: "" });

  EvoMerge.views.run = (runId) => {
    const own = store(),
      state = fresh();
    let tag = "";
    async function load() {
      const since = own.data ? own.data.sequence : 0;
      const answer = await EvoMerge.ask(`/api/runs/${encodeURIComponent(runId)}?since=${since}`, tag);
      if (answer.same) return;
      own.take(answer.data);
      tag = `"${answer.data.sequence}-${answer.data.sequence}"`; // with nothing newer the answer is 304
      document.title = `EvoMerge: ${own.data.run.name}`;
    }
    return {
      load,
      show: () => (own.data ? show(own, state) : h("p", { class: "soft" }, "Loading …")),
      stream: `?run=${encodeURIComponent(runId)}`,
      sequence: () => (own.data ? own.data.sequence : 0),
    };
  };

  Object.assign(EvoMerge, {
    run: { store, show, fresh, fitness, leaderboard, pareto, drift, section, pathOf, link, home },
  });
})();
