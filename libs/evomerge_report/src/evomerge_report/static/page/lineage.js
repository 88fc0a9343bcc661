// The family tree of the best candidates: sources at the left, the champion's ancestry marked.
"use strict";
(() => {
  const { h, format } = EvoMerge;
  const WIDTH = 168,
    HEIGHT = 46,
    GAP_X = 46,
    GAP_Y = 12,
    MARGIN = 8,
    MOST = 60,
    BEST = 6;

  function ancestors(start, byIndex, found) {
    const wanted = [start];
    while (wanted.length && found.size < MOST) {
      const one = byIndex.get(wanted.shift());
      if (!one || found.has(one.index)) continue;
      found.set(one.index, one);
      wanted.push(...one.parents);
    }
    return found;
  }

  function layout(nodes) {
    const level = new Map();
    [...nodes.values()]
      .sort((a, b) => a.index - b.index)
      .forEach((one) => {
        const above = one.parents.filter((parent) => level.has(parent)).map((parent) => level.get(parent));
        level.set(one.index, above.length ? 1 + Math.max(...above) : 0);
      });
    const columns = new Map();
    for (const one of nodes.values()) {
      const at = level.get(one.index);
      if (!columns.has(at)) columns.set(at, []);
      columns.get(at).push(one);
    }
    const places = new Map(),
      tallest = Math.max(...[...columns.values()].map((one) => one.length));
    const height = 2 * MARGIN + tallest * HEIGHT + (tallest - 1) * GAP_Y;
    const middle = (one) => {
      const ys = one.parents.filter((parent) => places.has(parent)).map((parent) => places.get(parent)[1]);
      return ys.length ? ys.reduce((a, b) => a + b) / ys.length : 0;
    };
    [...columns.keys()]
      .sort((a, b) => a - b)
      .forEach((at, position) => {
        const column = columns.get(at).sort((a, b) => middle(a) - middle(b) || a.index - b.index);
        const top = (height - column.length * HEIGHT - (column.length - 1) * GAP_Y) / 2;
        column.forEach((one, row) =>
          places.set(one.index, [MARGIN + position * (WIDTH + GAP_X), top + row * (HEIGHT + GAP_Y)]),
        );
      });
    return { places, height, width: 2 * MARGIN + columns.size * WIDTH + (columns.size - 1) * GAP_X };
  }

  function cut(text, most) {
    return text.length > most ? `${text.slice(0, most - 1)}…` : text;
  }

  // lineage({ champion, best (rows), byIndex, looks, href(row) })
  function lineage(asked) {
    if (!asked.champion && !asked.best.length) return h("p", { class: "soft" }, "No candidate has a score yet.");
    const own = asked.champion ? ancestors(asked.champion.index, asked.byIndex, new Map()) : new Map();
    const nodes = new Map(own);
    for (const one of asked.best.slice(0, BEST)) if (nodes.size < MOST) ancestors(one.index, asked.byIndex, nodes);
    const { places, width, height } = layout(nodes);
    const edges = [],
      boxes = [];
    // Links within a document that lie left of it look like skip links to screen readers: a report's tree stays at its start.
    const within = nodes.size && asked.href(nodes.values().next().value).startsWith("#");
    const toChampion = (node) =>
      requestAnimationFrame(() => {
        if (!within) node.scrollLeft = node.scrollWidth;
      });
    for (const one of nodes.values()) {
      const [x, y] = places.get(one.index),
        marked = own.has(one.index);
      for (const parent of one.parents) {
        if (!places.has(parent)) continue;
        const [px, py] = places.get(parent),
          x1 = px + WIDTH,
          y1 = py + HEIGHT / 2,
          x2 = x,
          y2 = y + HEIGHT / 2,
          bend = Math.max(24, (x2 - x1) / 2);
        edges.push(
          h("path", {
            key: `${parent}-${one.index}`,
            class: marked ? "edge own" : "edge",
            d: `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`,
          }),
        );
      }
      const champion = asked.champion && one.index === asked.champion.index,
        look = asked.looks[one.operator] || ["#888", "#aaa", "circle"];
      const value =
        one.fitness !== null
          ? format.score(one.fitness)
          : one.estimate !== null
            ? `≈ ${format.score(one.estimate)}`
            : one.state;
      boxes.push(
        h(
          "a",
          {
            key: String(one.index),
            href: asked.href(one),
            class: ["node", marked ? "own" : "", champion ? "champion" : ""].join(" ").trim(),
            "aria-label":
              `${one.name}, ${one.operator}, ${value}` +
              (champion ? ", champion" : marked ? ", ancestor of the champion" : ""),
          },
          h("title", null, `${one.name}: ${one.digest}`),
          h("rect", { x, y, width: WIDTH, height: HEIGHT, rx: 7 }),
          h("rect", {
            class: "stripe",
            x,
            y,
            width: 5,
            height: HEIGHT,
            rx: 2,
            style: { "--light": look[0], "--dark": look[1] },
          }),
          h("text", { class: "name", x: x + 14, y: y + 19 }, cut(one.name, 18)),
          h("text", { x: x + 14, y: y + 36 }, `${cut(one.operator, 13)} · ${value}`),
        ),
      );
    }
    return [
      h(
        "div",
        {
          key: "tree",
          class: "scroll tree",
          role: "region",
          "aria-label": "family tree",
          tabindex: "0",
          mounted: toChampion,
        },
        h(
          "svg",
          {
            width,
            height,
            viewBox: `0 0 ${width} ${height}`,
            role: "group",
            "aria-label": "family tree of the best candidates",
          },
          edges,
          boxes,
        ),
      ),
      h(
        "p",
        { key: "words", class: "soft" },
        "The champion and its ancestors are framed; the others are the next best and theirs",
        nodes.size >= MOST ? `, ${MOST} at most.` : ".",
      ),
    ];
  }

  Object.assign(EvoMerge, { lineage });
})();
