// Numbers and words as people read them.
"use strict";
(() => {
  const DASH = "–";

  function score(value) {
    return value === null || value === undefined ? DASH : value.toFixed(3);
  }
  function signed(value) {
    return value === null || value === undefined ? DASH : (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);
  }
  function interval(low, high, show = score) {
    return low === null || low === undefined ? "" : `[${show(low)}, ${show(high)}]`;
  }
  function count(value) {
    return value === null || value === undefined ? DASH : value.toLocaleString("en");
  }
  function percent(value) {
    return value === null || value === undefined ? DASH : `${(100 * value).toFixed(0)} %`;
  }

  function duration(seconds) {
    if (seconds === null || seconds === undefined) return DASH;
    if (seconds < 10) return `${seconds.toFixed(1)} s`;
    if (seconds < 60) return `${Math.round(seconds)} s`;
    const minutes = Math.floor(seconds / 60);
    if (minutes < 60) return `${minutes} min ${Math.round(seconds % 60)} s`;
    if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
    return `${Math.floor(minutes / 1440)} d ${Math.floor((minutes % 1440) / 60)} h`;
  }

  function moment(seconds) {
    if (!seconds) return DASH;
    const date = new Date(1000 * seconds),
      two = (n) => String(n).padStart(2, "0");
    const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
    return `${day} ${two(date.getHours())}:${two(date.getMinutes())}`;
  }

  function size(value) {
    for (const [limit, unit] of [
      [1e9, "B"],
      [1e6, "M"],
      [1e3, "k"],
    ])
      if (value >= limit) return `${(value / limit).toFixed(2)} ${unit}`;
    return value ? String(value) : DASH;
  }

  // A digest as its beginning; the whole is in the title.
  function digest(text) {
    const plain = (text || "").replace(/^sha256:/, "");
    return EvoMerge.h("code", { title: text, class: "digest" }, plain.slice(0, 12) || DASH);
  }

  Object.assign(EvoMerge, {
    format: { score, signed, interval, count, percent, duration, moment, size, digest, DASH },
  });
})();
