// What the page shows by its address, kept up to date: each drawing is in place, twice a second at most.
"use strict";
(() => {
  const { h, render } = EvoMerge;
  const MIN_PAUSE = 500; // milliseconds between two questions to the server
  let current = null,
    queued = false;

  // A view is { data() → description of what it shows now, load() → promise that fetches what is new, stream (query) }.
  function redraw() {
    if (queued || !current) return;
    queued = true;
    requestAnimationFrame(() => {
      queued = false;
      draw();
    });
  }

  function draw() {
    const main = document.getElementById("main");
    if (current && main) render(main, current.show());
  }

  async function ask(path, tag) {
    const answer = await fetch(path, { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
    if (answer.status === 401) {
      location.href = "/login";
      throw new Error("log in first");
    }
    if (answer.status === 304) return { same: true, tag };
    const data = await answer.json();
    if (!answer.ok) throw new Error(data.error || `status ${answer.status}`);
    return { data, tag: answer.headers.get("ETag") };
  }

  async function send(path, body) {
    const answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body || {}),
    });
    const data = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(data.error || `status ${answer.status}`);
    return data;
  }

  function state(text, kind) {
    const live = document.getElementById("live");
    if (live && live.textContent !== text) {
      live.textContent = text;
      live.className = `badge ${kind}`;
    }
  }

  // Loads when told that the log has moved: never two at a time, and what comes meanwhile becomes one.
  function follow(view) {
    let busy = false,
      again = false;
    const load = async (then) => {
      if (busy) {
        again = true;
        return;
      }
      busy = true;
      try {
        await view.load();
        state("live", "good");
        redraw();
      } catch (error) {
        state(error.message, "bad");
      }
      if (typeof then === "function") then();
      await new Promise((done) => setTimeout(done, MIN_PAUSE));
      busy = false;
      if (again) {
        again = false;
        load();
      }
    };
    const listen = () => {
      // only for what came after the first answer
      const stream = new EventSource(`/api/changes${view.stream || "?"}&since=${view.sequence ? view.sequence() : 0}`);
      stream.addEventListener("change", load);
      stream.onerror = () => state("out of reach, trying again", "bad");
      stream.onopen = () => state("live", "good");
    };
    return load(listen);
  }

  async function start() {
    const held = document.getElementById("data"); // a report has its data with it
    if (held) {
      current = EvoMerge.report(JSON.parse(held.textContent));
      draw();
      return;
    }
    const parts = location.pathname.split("/").filter(Boolean).map(decodeURIComponent);
    if (parts[0] === "runs" && parts[2] === "candidates" && EvoMerge.views.candidate)
      current = EvoMerge.views.candidate(parts[1], parts[3]);
    else if (parts[0] === "runs") current = EvoMerge.views.run(parts[1]);
    else if (parts[0] === "compare")
      current = EvoMerge.views.compare(new URLSearchParams(location.search).getAll("run"));
    else current = EvoMerge.views.runs();
    await follow(current);
  }

  // Colours and charts follow the scheme, also when it changes while the page is open.
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    EvoMerge.charts.retheme();
    redraw();
  });
  document.addEventListener("DOMContentLoaded", start);
  Object.assign(EvoMerge, { redraw, ask, send });
})();
