// Asks for the changing part again whenever the log has moved.
"use strict";
(() => {
  const main = document.getElementById("main");
  const live = document.getElementById("live");
  let busy = false, again = false;
  async function refresh() {
    if (busy) { again = true; return; }
    busy = true;
    try {
      const answer = await fetch(location.pathname + "?part=1", { cache: "no-store" });
      if (answer.ok) {
        const open = [...main.querySelectorAll("details[open]")].map((d) => d.id);
        const scrolled = [...main.querySelectorAll("pre")].map((p) => p.scrollTop);
        main.innerHTML = await answer.text();
        open.forEach((id) => { const d = document.getElementById(id); if (d) d.open = true; });
        main.querySelectorAll("pre").forEach((p, i) => { p.scrollTop = scrolled[i] || 0; });
      }
    } catch (error) {
      live.textContent = "out of reach, trying again";
    }
    busy = false;
    if (again) { again = false; refresh(); }
  }
  const changes = new EventSource("/changes");
  let broken = false;
  changes.onopen = () => { live.textContent = "live"; if (broken) refresh(); broken = false; };
  changes.onerror = () => { live.textContent = "out of reach, trying again"; broken = true; };
  changes.onmessage = refresh;
})();
