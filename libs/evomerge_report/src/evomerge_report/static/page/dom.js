// Elements as descriptions, brought into the document in place: what is there stays there, with its focus, its scroll
// position, its selection and whether it is open. Texts become text nodes and nothing else: no markup comes from data.
"use strict";
const EvoMerge = { views: {} };
(() => {
  const SVG = "http://www.w3.org/2000/svg";

  // Describes an element. Props: `key` (which child it is among its siblings), `class`, `style` (an object), `on`
  // (event → function), `mounted(node)` and `drawn(node)` (called once, and after each drawing), `own` (its children are
  // somebody else's, such as a chart's); any other is an attribute. Children: descriptions, texts, numbers, lists of them.
  function h(tag, props, ...children) {
    return {
      tag,
      props: props || {},
      children: children.flat(Infinity).filter((one) => one !== null && one !== undefined && one !== false),
    };
  }

  function setProp(node, name, value, before) {
    if (name === "style") {
      const old = before || {};
      for (const key of Object.keys(old)) if (!value || !(key in value)) node.style.removeProperty(key);
      for (const [key, text] of Object.entries(value || {})) if (old[key] !== text) node.style.setProperty(key, text);
    } else if (name === "on") {
      node.evoOn = node.evoOn || {};
      for (const type of Object.keys(value || {})) {
        if (!(type in node.evoOn)) node.addEventListener(type, (event) => node.evoOn[type] && node.evoOn[type](event));
      }
      node.evoOn = value || {};
    } else if (
      name === "value" ||
      name === "checked" ||
      name === "open" ||
      name === "disabled" ||
      name === "selected"
    ) {
      if (node[name] !== value) node[name] = value === undefined ? "" : value;
    } else if (value === undefined || value === null || value === false) {
      node.removeAttribute(name);
    } else {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }

  const SPECIAL = new Set(["key", "mounted", "drawn", "own"]);

  function create(one, namespace) {
    if (typeof one !== "object") return document.createTextNode(String(one));
    const space = one.tag === "svg" ? SVG : namespace;
    const node = space ? document.createElementNS(space, one.tag) : document.createElement(one.tag);
    node.evoOld = { tag: one.tag, props: {}, children: [] };
    update(node, one, space);
    return node;
  }

  // Only what differs from the last description is touched: a <details> that a reader opened stays open.
  function update(node, one, namespace) {
    const before = node.evoOld.props,
      now = one.props;
    for (const name of Object.keys(before))
      if (!(name in now) && !SPECIAL.has(name)) setProp(node, name, undefined, before[name]);
    const late = [];
    for (const [name, value] of Object.entries(now)) {
      if (SPECIAL.has(name) || (before[name] === value && name !== "value" && name !== "on")) continue;
      if (name === "value") late.push(name);
      else setProp(node, name, value, before[name]);
    }
    const isNew = !node.evoMounted;
    if (!now.own) children(node, one.children, one.tag === "foreignObject" ? null : namespace);
    if (!(before.value === now.value && !isNew)) late.forEach((name) => setProp(node, name, now[name], before[name]));
    node.evoOld = one;
    if (isNew) {
      node.evoMounted = true;
      if (now.mounted) now.mounted(node);
    }
    if (now.drawn) now.drawn(node);
  }

  function keyOf(one) {
    return typeof one === "object" ? (one.props.key === undefined ? "" : String(one.props.key)) : "";
  }

  function children(parent, wanted, namespace) {
    const keyed = new Map(),
      free = new Map();
    for (const node of parent.childNodes) {
      const old = node.evoOld,
        key = old ? keyOf(old) : "",
        type = old ? old.tag : "#text";
      if (key) keyed.set(type + " " + key, node);
      else {
        if (!free.has(type)) free.set(type, []);
        free.get(type).push(node);
      }
    }
    for (const queue of free.values()) queue.reverse();
    const nodes = wanted.map((one) => {
      const key = keyOf(one),
        type = typeof one === "object" ? one.tag : "#text";
      let node;
      if (key) {
        node = keyed.get(type + " " + key);
        keyed.delete(type + " " + key);
      } else if (free.has(type)) node = free.get(type).pop();
      if (!node) return create(one, namespace);
      if (type === "#text") {
        if (node.data !== String(one)) node.data = String(one);
      } else if (node.evoOld !== one) update(node, one, one.tag === "svg" ? SVG : namespace);
      return node;
    });
    for (const node of keyed.values()) node.remove();
    for (const queue of free.values()) queue.forEach((node) => node.remove());
    let cursor = parent.firstChild;
    for (const node of nodes) {
      if (node === cursor) cursor = cursor.nextSibling;
      else parent.insertBefore(node, cursor);
    }
  }

  // Brings the children of an element to what is described. An element that had the focus and was moved has it again;
  // where it was in sight it stays at its height, whatever comes in above it.
  function render(root, ...wanted) {
    const focused = document.activeElement,
      isOurs = focused && focused !== root && root.contains(focused);
    const top = isOurs ? focused.getBoundingClientRect().top : -1,
      inSight = top >= 0 && top < innerHeight;
    children(
      root,
      wanted.flat(Infinity).filter((one) => one !== null && one !== undefined && one !== false),
      null,
    );
    if (focused && focused !== document.activeElement && root.contains(focused)) focused.focus({ preventScroll: true });
    if (inSight && focused.isConnected) {
      const moved = focused.getBoundingClientRect().top - top;
      if (Math.abs(moved) > 1) scrollBy(0, moved);
    }
  }

  // Remembers descriptions: what depends on the same as before is the same, and is not looked at again.
  function memory() {
    const known = new Map();
    return (name, on, describe) => {
      const text = on.join("\u0000"),
        before = known.get(name);
      if (before && before.text === text) return before.made;
      const made = describe();
      known.set(name, { text, made });
      return made;
    };
  }

  // A labelled choice among [value, words]; what is chosen is given to `change`, and the page drawn again.
  function picker(label, value, options, change) {
    const chosen = (event) => {
      change(event.target.value);
      EvoMerge.redraw();
    };
    return h(
      "label",
      { key: label },
      `${label} `,
      h(
        "select",
        { value, on: { change: chosen } },
        options.map(([key, words]) => h("option", { key: key || "all", value: key }, words)),
      ),
    );
  }

  Object.assign(EvoMerge, { h, render, memory, picker });
})();
