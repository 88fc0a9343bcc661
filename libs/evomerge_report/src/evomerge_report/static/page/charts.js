// Charts on uPlot: lines and points with shapes, hover, zoom by dragging and by keys. A drawing changes the chart in
// place: what a reader zoomed into stays.
"use strict";
(() => {
  const { h } = EvoMerge;
  const REACH = 24; // pixels around the pointer in which a point counts as meant
  const INTERVAL_WIDTH = 6; // pixels a point in sight that its interval needs to be legible
  const live = new Set();

  function isDark() {
    return matchMedia("(prefers-color-scheme: dark)").matches;
  }
  function css(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }
  function colour(look) {
    return isDark() ? look[1] : look[0];
  }

  function corners(count, turn) {
    return Array.from({ length: count }, (_, i) => [
      Math.sin(turn + (2 * Math.PI * i) / count),
      -Math.cos(turn + (2 * Math.PI * i) / count),
    ]);
  }
  const star = Array.from({ length: 10 }, (_, i) => {
    const r = i % 2 ? 0.5 : 1.25;
    return [r * Math.sin((Math.PI * i) / 5), -r * Math.cos((Math.PI * i) / 5)];
  });
  const plus = [
    [-0.35, -1],
    [0.35, -1],
    [0.35, -0.35],
    [1, -0.35],
    [1, 0.35],
    [0.35, 0.35],
    [0.35, 1],
    [-0.35, 1],
    [-0.35, 0.35],
    [-1, 0.35],
    [-1, -0.35],
    [-0.35, -0.35],
  ];
  const turned = plus.map(([x, y]) => [(x - y) * 0.75, (x + y) * 0.75]);
  const SHAPES = {
    square: [
      [-0.85, -0.85],
      [0.85, -0.85],
      [0.85, 0.85],
      [-0.85, 0.85],
    ],
    diamond: corners(4, 0).map(([x, y]) => [1.1 * x, 1.1 * y]),
    thin: [
      [0, -1.2],
      [0.65, 0],
      [0, 1.2],
      [-0.65, 0],
    ],
    up: corners(3, 0).map(([x, y]) => [1.15 * x, 1.15 * y]),
    down: corners(3, Math.PI).map(([x, y]) => [1.15 * x, 1.15 * y]),
    left: corners(3, -Math.PI / 2).map(([x, y]) => [1.15 * x, 1.15 * y]),
    right: corners(3, Math.PI / 2).map(([x, y]) => [1.15 * x, 1.15 * y]),
    pentagon: corners(5, 0),
    hexagon: corners(6, 0),
    star,
    plus,
    cross: turned,
  };

  function outline(path, shape, x, y, r) {
    const points = SHAPES[shape];
    if (!points) {
      path.moveTo(x + r, y);
      path.arc(x, y, r, 0, 2 * Math.PI);
      return;
    }
    points.forEach(([dx, dy], i) => (i ? path.lineTo(x + r * dx, y + r * dy) : path.moveTo(x + r * dx, y + r * dy)));
    path.closePath();
  }

  // A shape drawn once, to be put down thousands of times.
  function stampOf(look, r, ratio, hollow, rim) {
    const stamp = document.createElement("canvas"),
      size = Math.ceil(2 * (1.3 * r + 2 * ratio)),
      ctx = stamp.getContext("2d"),
      path = new Path2D();
    stamp.width = size;
    stamp.height = size;
    outline(path, look[2], size / 2, size / 2, r);
    if (hollow) {
      ctx.strokeStyle = colour(look);
      ctx.lineWidth = 1.2 * ratio;
      ctx.globalAlpha = 0.8;
      ctx.stroke(path);
      return stamp;
    }
    ctx.fillStyle = colour(look);
    ctx.globalAlpha = rim ? 0.95 : 0.75;
    ctx.fill(path);
    if (rim) {
      ctx.strokeStyle = css("--back");
      ctx.lineWidth = 0.6 * ratio;
      ctx.stroke(path);
    }
    return stamp;
  }

  // The same shape as a small picture, for legends and tables.
  function mark(look, extra) {
    const points = SHAPES[look[2]];
    const props = { class: "shape", fill: look[0] };
    const shape = points
      ? h("polygon", {
          class: "shape",
          points: points.map(([x, y]) => `${(7 + 5 * x).toFixed(1)},${(7 + 5 * y).toFixed(1)}`).join(" "),
        })
      : h("circle", { class: props.class, cx: 7, cy: 7, r: 5 });
    return h(
      "svg",
      {
        class: "mark",
        width: 14,
        height: 14,
        viewBox: "0 0 14 14",
        "aria-hidden": "true",
        style: { "--light": look[0], "--dark": look[1] },
        ...extra,
      },
      shape,
    );
  }

  class Chart {
    constructor(node) {
      this.node = node;
      this.zoomed = false;
      this.at = -1;
      this.tip = document.createElement("div");
      this.tip.className = "tip";
      this.tip.hidden = true;
      this.tip.setAttribute("role", "status");
      this.frame = document.createElement("div");
      this.ring = document.createElement("div");
      this.ring.className = "ring";
      this.ring.hidden = true;
      node.append(this.frame, this.ring, this.tip);
      this.sizes = new ResizeObserver(() => this.fit());
      this.sizes.observe(node);
      this.sight = new IntersectionObserver(
        (seen) => {
          this.seen = seen[seen.length - 1].isIntersecting;
          if (this.seen) this.bring();
        },
        { rootMargin: "300px" },
      );
      this.sight.observe(node);
      node.addEventListener("keydown", (event) => this.key(event));
      node.addEventListener("mouseleave", () => this.point(-1));
      node.addEventListener("blur", () => this.point(-1));
      node.addEventListener("click", (event) => {
        if (!this.dragged && this.at >= 0) this.open(event);
      });
      live.add(this);
    }

    width() {
      return Math.max(200, Math.floor(this.node.clientWidth));
    }
    fit() {
      if (this.plot && this.plot.width !== this.width())
        this.plot.setSize({ width: this.width(), height: this.spec.height || 300 });
    }

    // Takes in what is to be drawn; what is out of sight is drawn when it comes into it.
    draw(spec) {
      this.spec = spec;
      this.node.style.minHeight = `${spec.height || 300}px`;
      if (this.seen) this.bring();
    }

    bring() {
      const { spec, drawn } = this;
      if (!spec || spec === drawn) return;
      this.drawn = spec;
      if (!this.plot || drawn.form !== spec.form) {
        this.make();
        return;
      }
      if (drawn.version === spec.version) return;
      this.plot.setData(this.data(), !this.zoomed);
      if (this.zoomed) this.plot.redraw();
      this.point(this.at);
    }

    data() {
      return [this.spec.x, ...this.spec.lines.map((line) => line.y)];
    }

    make() {
      const kept = this.zoomed && this.plot ? { ...this.plot.scales.x } : null;
      if (this.plot) this.plot.destroy();
      const spec = this.spec,
        soft = css("--soft"),
        line = css("--line");
      const axis = (label, side) => ({
        label,
        labelSize: 22,
        labelFont: "12px system-ui, sans-serif",
        font: "12px system-ui, sans-serif",
        stroke: soft,
        grid: { stroke: line, width: 1 },
        ticks: { stroke: line, width: 1 },
        size: side ? 52 : 34,
        labelGap: side ? 0 : 2,
      });
      this.plot = new uPlot(
        {
          width: this.width(),
          height: spec.height || 300,
          legend: { show: false },
          scales: {
            x: { time: false, range: (u, low, high) => this.xRange(low, high) },
            y: { range: (u) => this.yRange(u) },
          },
          axes: [
            {
              ...axis(spec.xLabel, false),
              ...(spec.xTicks ? { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] } : {}),
              space: 60,
            },
            { ...axis(spec.yLabel, true), space: 36 },
          ],
          series: [
            {},
            ...spec.lines.map((one) => ({
              label: one.label,
              stroke: () => this.ink(one.colour),
              width: one.width || 0,
              dash: one.dash,
              points: { show: false },
              spanGaps: true,
              paths: one.step ? uPlot.paths.stepped({ align: 1 }) : undefined,
              show: !one.hidden,
              fill: one.fill ? () => this.ink(one.fill) : undefined,
            })),
          ],
          bands: spec.bands,
          cursor: { drag: { x: true, y: false, dist: 6 }, points: { show: false }, y: true },
          hooks: {
            draw: [(u) => this.paint(u)],
            setCursor: [(u) => this.seek(u)],
            setSelect: [
              (u) => {
                if (u.select.width > 0) {
                  this.zoomed = true;
                  this.dragged = true;
                  setTimeout(() => {
                    this.dragged = false;
                  }, 50);
                  this.tell();
                }
              },
            ],
          },
        },
        this.data(),
        this.frame,
      );
      this.plot.over.addEventListener("dblclick", () => this.reset());
      if (kept) this.plot.setScale("x", { min: kept.min, max: kept.max });
    }

    ink(one) {
      return one.startsWith("--") ? css(one) : one;
    }

    xRange(low, high) {
      if (low === null || low === undefined) return [0, 1];
      if (this.zoomed) return [low, high];
      const pad = Math.max((high - low) * 0.02, this.spec.xTicks ? 0.6 : 0.004);
      return [low - pad, high + pad];
    }

    yRange(u) {
      if (this.spec.yFixed) return this.spec.yFixed;
      const { min, max } = u.scales.x;
      let low = Infinity,
        high = -Infinity;
      const take = (value) => {
        if (value !== null && value !== undefined) {
          if (value < low) low = value;
          if (value > high) high = value;
        }
      };
      const { x, lines, points } = this.spec;
      for (let i = 0; i < x.length; i++)
        if (min === undefined || min === null || (x[i] >= min && x[i] <= max))
          for (const line of lines) if (!line.hidden) take(line.y[i]);
      for (const one of points || [])
        if (min === undefined || min === null || (one.x >= min && one.x <= max)) take(one.y);
      if (low > high) return [0, 1];
      const pad = Math.max(0.06 * (high - low), 0.004);
      return [this.spec.yMin === undefined ? low - pad : this.spec.yMin, high + pad];
    }

    paint(u) {
      const { ctx } = u,
        ratio = devicePixelRatio || 1,
        spec = this.spec;
      const { left, top, width, height } = u.bbox,
        { min, max } = u.scales.x;
      ctx.save();
      ctx.setLineDash([]);
      ctx.beginPath();
      ctx.rect(left, top, width, height);
      ctx.clip();
      const seen = (spec.points || []).filter((one) => one.x >= min && one.x <= max);
      const X = (v) => u.valToPos(v, "x", true),
        Y = (v) => u.valToPos(v, "y", true);
      if (spec.stairs && spec.stairs.length) this.stairs(ctx, X, Y, ratio);
      if (seen.length * INTERVAL_WIDTH <= u.over.clientWidth) {
        ctx.lineWidth = ratio;
        ctx.globalAlpha = 0.55;
        for (const one of seen) {
          if (one.low === null || one.low === undefined) continue;
          ctx.strokeStyle = colour(one.look);
          ctx.beginPath();
          ctx.moveTo(X(one.x), Y(one.low));
          ctx.lineTo(X(one.x), Y(one.high));
          ctx.stroke();
        }
        ctx.globalAlpha = 1;
      }
      const r = ratio * (seen.length > 1500 ? 2.2 : seen.length > 400 ? 3 : 4),
        rims = seen.length <= 400;
      const stamps = new Map();
      for (const hollow of [true, false])
        for (const one of seen) {
          // estimates below scores
          if (Boolean(one.hollow) !== hollow) continue;
          const key = hollow + one.look.join();
          let stamp = stamps.get(key);
          if (!stamp) {
            stamp = stampOf(one.look, r, ratio, hollow, rims);
            stamps.set(key, stamp);
          }
          ctx.drawImage(stamp, X(one.x) - stamp.width / 2, Y(one.y) - stamp.height / 2);
        }
      for (const one of spec.marked || []) {
        const path = new Path2D();
        outline(path, "star", X(one.x), Y(one.y), 8 * ratio);
        ctx.fillStyle = css("--bad");
        ctx.fill(path);
        ctx.strokeStyle = css("--back");
        ctx.lineWidth = 1.5 * ratio;
        ctx.stroke(path);
      }
      ctx.restore();
    }

    // From each point of the front to the next: what is reached in both is the area below.
    stairs(ctx, X, Y, ratio) {
      const front = this.spec.stairs;
      ctx.strokeStyle = css("--good");
      ctx.lineWidth = 2 * ratio;
      ctx.beginPath();
      front.forEach(([x, y], i) => {
        if (i) {
          ctx.lineTo(X(front[i - 1][0]), Y(y));
          ctx.lineTo(X(x), Y(y));
        } else ctx.moveTo(X(x), Y(y));
      });
      ctx.stroke();
    }

    seek(u) {
      if (!this.spec.points || u.cursor.left < 0 || this.keyed) return;
      let best = -1,
        near = REACH * REACH;
      const { min, max } = u.scales.x,
        sx = u.over.clientWidth / (max - min),
        low = u.scales.y.min,
        sy = u.over.clientHeight / (u.scales.y.max - low),
        bottom = u.over.clientHeight;
      this.spec.points.forEach((one, i) => {
        const dx = (one.x - min) * sx - u.cursor.left,
          dy = bottom - (one.y - low) * sy - u.cursor.top,
          d = dx * dx + dy * dy;
        if (d < near) {
          near = d;
          best = i;
        }
      });
      if (best !== this.at) this.point(best);
    }

    point(at) {
      const spec = this.spec,
        one = at >= 0 && spec && spec.points ? spec.points[at] : null;
      this.at = one ? at : -1;
      this.tip.hidden = this.ring.hidden = !one;
      if (!one) return;
      EvoMerge.render(this.tip, spec.describe(one));
      const u = this.plot,
        x = u.over.offsetLeft + u.valToPos(one.x, "x"),
        y = u.over.offsetTop + u.valToPos(one.y, "y");
      const wide = this.tip.offsetWidth,
        left = x + 16 + wide > this.width() ? Math.max(0, x - 16 - wide) : x + 16;
      this.tip.style.transform = `translate(${Math.round(left)}px, ${Math.round(Math.max(0, y - 20))}px)`;
      this.ring.style.transform = `translate(${x - 8}px, ${y - 8}px)`;
      this.node.style.cursor = spec.href ? "pointer" : "";
    }

    open() {
      const one = this.spec.points[this.at],
        href = this.spec.href && one ? this.spec.href(one) : null;
      if (href) location.href = href;
    }

    key(event) {
      if (!this.plot) this.bring();
      const points = this.spec.points || [];
      if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
        if (!points.length) return;
        const step = event.key === "ArrowRight" ? 1 : -1;
        this.point(
          this.at < 0 ? (step > 0 ? 0 : points.length - 1) : Math.min(points.length - 1, Math.max(0, this.at + step)),
        );
      } else if (event.key === "+" || event.key === "=") this.zoom(0.5);
      else if (event.key === "-") this.zoom(2);
      else if (event.key === "0" || event.key === "Escape") this.reset();
      else if (event.key === "Enter" && this.at >= 0) this.open();
      else return;
      event.preventDefault();
    }

    zoom(by) {
      const { min, max } = this.plot.scales.x,
        one = this.spec.points && this.spec.points[this.at],
        middle = one ? one.x : (min + max) / 2;
      const half = (by * (max - min)) / 2,
        all = this.spec.x;
      if (2 * half >= all[all.length - 1] - all[0]) {
        this.reset();
        return;
      }
      this.zoomed = true;
      this.plot.setScale("x", { min: middle - half, max: middle + half });
      this.tell();
    }

    reset() {
      this.zoomed = false;
      this.plot.setData(this.data(), true);
      this.tell();
    }
    tell() {
      this.node.classList.toggle("zoomed", this.zoomed);
      EvoMerge.redraw();
    }
  }

  function zoomedOne(key) {
    return [...live].find((one) => one.spec && one.spec.key === key && one.zoomed);
  }

  // What a reader sees of some charts, as text: the scheme, and which of them are zoomed.
  function choices(...keys) {
    return [isDark(), ...keys.map((key) => Boolean(zoomedOne(key)))].join();
  }

  // chart({ key, label, height, form, version, x, lines, points, stairs, marked, describe,
  // href, xLabel, yLabel, xTicks, yFixed }):
  // `form` is a text that differs when lines are others, `version` one that differs when any number does.
  function chart(spec) {
    const zoomed = zoomedOne(spec.key);
    return h(
      "div",
      { key: spec.key, class: "charted" },
      h("div", {
        key: "chart",
        class: "chart",
        own: true,
        tabindex: "0",
        role: "group",
        "aria-label": `${spec.label}. Arrow keys go from point to point, plus and minus zoom, zero shows all.`,
        mounted: (node) => {
          node.evoChart = new Chart(node);
        },
        drawn: (node) => node.evoChart.draw(spec),
      }),
      zoomed &&
        h(
          "button",
          { key: "all", type: "button", class: "quiet reset", on: { click: () => zoomed.reset() } },
          "Show all",
        ),
    );
  }

  addEventListener("beforeprint", () => {
    for (const one of live) if (one.node.isConnected) one.bring();
  });

  function retheme() {
    for (const one of live) if (one.plot && one.node.isConnected) one.make();
  }

  // Names with their shapes or lines, which show and hide what they name.
  function legend(entries) {
    return h(
      "ul",
      { class: "legend" },
      entries.map((one) =>
        h(
          "li",
          { key: one.name },
          one.toggle
            ? h(
                "button",
                { type: "button", class: "quiet", "aria-pressed": String(!one.hidden), on: { click: one.toggle } },
                one.look ? mark(one.look) : stroke(one),
                one.name,
              )
            : h("span", null, one.look ? mark(one.look) : stroke(one), one.name),
        ),
      ),
    );
  }

  function stroke(one) {
    return h(
      "svg",
      { class: "mark", width: 22, height: 14, viewBox: "0 0 22 14", "aria-hidden": "true" },
      one.star
        ? h("polygon", {
            class: "champion",
            points: SHAPES.star.map(([x, y]) => `${(11 + 5.5 * x).toFixed(1)},${(7 + 5.5 * y).toFixed(1)}`).join(" "),
          })
        : h("line", {
            x1: 1,
            x2: 21,
            y1: 7,
            y2: 7,
            style: { stroke: one.colour.startsWith("--") ? `var(${one.colour})` : one.colour },
            "stroke-width": one.width || 2,
            "stroke-dasharray": (one.dash || []).join(" ") || undefined,
          }),
    );
  }

  Object.assign(EvoMerge, { charts: { chart, choices, legend, mark, retheme, isDark, colour } });
})();
