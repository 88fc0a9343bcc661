// Tables that sort by any column, by mouse and keyboard, and show thousands of rows page by page.
"use strict";
(() => {
  const { h } = EvoMerge;
  const FIRST = 20,
    MORE = 50; // rows at first, and with each press of the button

  // What a reader chose of each table, by its id; kept over all drawings.
  const chosen = {};

  const words = new Intl.Collator("en", { numeric: true });

  function compare(a, b) {
    const none = (value) => value === null || value === undefined || value === "";
    if (none(a) || none(b)) return none(a) - none(b); // what is not known comes last, in either order
    return typeof a === "number" && typeof b === "number" ? a - b : words.compare(String(a), String(b));
  }

  function sorted(rows, column, down) {
    const values = rows.map((row, place) => [column.value(row), place, row]);
    const none = (value) => value === null || value === undefined || value === "";
    values.sort(
      (x, y) => (down && !none(x[0]) && !none(y[0]) ? -compare(x[0], y[0]) : compare(x[0], y[0])) || x[1] - y[1],
    );
    return values.map((one) => one[2]);
  }

  // table({ id, label, columns, rows, sort, down, key, first }): columns are { name, title, value(row), cell(row), number,
  // wide, plain (cannot be sorted by) }; `key(row)` tells rows apart; `first(row)` marks one.
  function table(asked) {
    const own = (chosen[asked.id] = chosen[asked.id] || { sort: asked.sort, down: asked.down, shown: FIRST });
    const column = asked.columns.find((one) => one.name === own.sort);
    const rows = column ? sorted(asked.rows, column, own.down) : asked.rows;
    const at = document.activeElement && document.activeElement.closest(`[data-table="${asked.id}"] tbody tr`);
    if (at)
      own.shown = Math.max(
        own.shown,
        1 + rows.findIndex((row) => String(asked.key(row)) === String(at.evoOld.props.key)),
      );
    const shown = rows.slice(0, own.shown); // the row that has the focus stays, however far down it goes
    const pick = (one) => () => {
      if (own.sort === one.name) own.down = !own.down;
      else {
        own.sort = one.name;
        own.down = Boolean(one.number);
      }
      EvoMerge.redraw();
    };
    const head = asked.columns.map((one) =>
      h(
        "th",
        {
          key: one.name,
          scope: "col",
          class: one.number ? "n" : "",
          title: one.title,
          "aria-sort": one.plain ? undefined : own.sort === one.name ? (own.down ? "descending" : "ascending") : "none",
        },
        one.plain
          ? one.name
          : h(
              "button",
              { type: "button", class: "sort", on: { click: pick(one) } },
              one.name,
              h(
                "span",
                { class: "arrow", "aria-hidden": "true" },
                own.sort === one.name ? (own.down ? "▼" : "▲") : "↕",
              ),
            ),
      ),
    );
    const body = shown.map((row) =>
      h(
        "tr",
        { key: asked.key(row), class: asked.first && asked.first(row) ? "first" : "" },
        asked.columns.map((one) =>
          h(
            one.heading ? "th" : "td",
            {
              key: one.name,
              class: [one.number ? "n" : "", one.wide ? "wide" : ""].join(" ").trim(),
              scope: one.heading ? "row" : undefined,
            },
            one.cell ? one.cell(row) : one.value(row),
          ),
        ),
      ),
    );
    const more = rows.length - shown.length;
    return h(
      "div",
      { key: asked.id, class: "tabled", "data-table": asked.id },
      h(
        "div",
        { class: "scroll", role: "region", "aria-label": `${asked.label}, table`, tabindex: "0" },
        h("table", null, h("thead", null, h("tr", null, head)), h("tbody", null, body)),
      ),
      more > 0 &&
        h(
          "p",
          { key: "more", class: "more" },
          h(
            "button",
            {
              type: "button",
              on: {
                click: () => {
                  own.shown += MORE;
                  EvoMerge.redraw();
                },
              },
            },
            `Show ${Math.min(MORE, more)} more`,
          ),
          h("span", { class: "soft" }, ` ${shown.length} of ${rows.length}`),
        ),
    );
  }

  // What a reader chose of some tables, as text.
  function choices(...ids) {
    return ids.map((id) => JSON.stringify(chosen[id] || null)).join();
  }

  Object.assign(EvoMerge, { table, choices });
})();
