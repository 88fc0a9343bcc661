// One prompt to the champion and the sources: what they write, side by side.
"use strict";
(() => {
  const { h } = EvoMerge;
  const state = { prompt: "", chat: false, busy: false, said: "", answers: null };

  async function ask(run, event) {
    event.preventDefault();
    if (state.busy || !state.prompt) return;
    Object.assign(state, { busy: true, said: "asking, one model after another …" });
    EvoMerge.redraw();
    try {
      const found = await EvoMerge.send(`/api/runs/${encodeURIComponent(run.run_id)}/try`, {
        prompt: state.prompt,
        chat: state.chat,
      });
      Object.assign(state, { answers: found.answers, said: "" });
    } catch (error) {
      state.said = error.message;
    }
    state.busy = false;
    EvoMerge.redraw();
  }

  function tryIt(run) {
    return EvoMerge.run.section(
      "try",
      "Try it",
      h(
        "form",
        { class: "try", on: { submit: (event) => ask(run, event) } },
        h(
          "label",
          { for: "prompt" },
          run.ended
            ? "One prompt to the champion and the sources"
            : "One prompt to the sources; the champion can be asked once it has been exported",
        ),
        h("textarea", {
          id: "prompt",
          rows: 3,
          maxlength: 4000,
          value: state.prompt,
          on: {
            input: (event) => {
              state.prompt = event.target.value;
            },
          },
        }),
        h(
          "div",
          { class: "tools" },
          h("button", { type: "submit", class: "button", disabled: state.busy }, "Ask"),
          h(
            "label",
            null,
            h("input", {
              type: "checkbox",
              checked: state.chat,
              on: {
                change: (event) => {
                  state.chat = event.target.checked;
                },
              },
            }),
            " through the chat template",
          ),
          h("span", { class: "soft", role: "status" }, state.said),
        ),
      ),
      state.answers &&
        EvoMerge.candidate.sideBySide(
          state.answers.map((one) => one.name),
          state.answers.map((one) => one.error || one.text),
          "your prompt",
        ),
    );
  }

  Object.assign(EvoMerge, { tryIt });
})();
