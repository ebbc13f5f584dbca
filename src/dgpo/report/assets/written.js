// What the model wrote: order, search, and the same prompt over time.

if ($("written-list")) {
  const list = $("written-list"), articles = [...list.children], STEP = 6;
  const value = (article, name, missing) => (article.dataset[name] === undefined ? missing : Number(article.dataset[name]));
  const orders = {
    // one completion of each prompt before a second one of any
    latest: (a, b) => value(b, "update") - value(a, "update") || value(a, "turn") - value(b, "turn"),
    first: (a, b) => value(a, "update") - value(b, "update"),
    best: (a, b) => value(b, "reward", -Infinity) - value(a, "reward", -Infinity),
    worst: (a, b) => value(a, "reward", Infinity) - value(b, "reward", Infinity),
    changed: (a, b) => value(b, "changed", -1) - value(a, "changed", -1),
    random: (a, b) => value(a, "random") - value(b, "random"),
  };
  let most = STEP;
  const prompts = new Map(); // prompt of a run -> updates, and a completion with it
  for (const article of articles) {
    const key = article.dataset.prompt;
    if (!prompts.has(key)) prompts.set(key, { updates: new Set(), text: article.querySelector(".asked").textContent });
    prompts.get(key).updates.add(article.dataset.update);
  }
  const again = [...prompts].filter(([, { updates }]) => updates.size > 1).sort(([, a], [, b]) => b.updates.size - a.updates.size);
  for (const [key, { updates, text }] of again.slice(0, 50)) {
    const line = text.replaceAll(/\s+/g, " ").trim();
    $("written-prompt").append(element("option", { value: key }, `${updates.size} times: ${line.length > 60 ? `${line.slice(0, 59)}…` : line}`));
  }
  $("written-prompt").closest("label").hidden = !again.length;
  const show = () => {
    const words = $("written-search").value.toLowerCase().split(/\s+/).filter(Boolean), prompt = $("written-prompt").value;
    const fits = (article) => state.shown.has(Number(article.dataset.run)) && (!prompt || article.dataset.prompt === prompt)
      && (!words.length || words.every((word) => article.textContent.toLowerCase().includes(word)));
    // a prompt over time is read from its first update on
    const found = articles.filter(fits).sort(prompt ? orders.first : orders[$("written-order").value]);
    const those = new Set(found.slice(0, most));
    for (const article of articles) article.hidden = !those.has(article);
    list.append(...found);
    $("written-count").textContent = `${those.size} of ${found.length} completions`;
    $("written-more").hidden = found.length <= most;
  };
  $("written-order").disabled = false;
  for (const id of ["written-order", "written-prompt", "written-search"]) {
    $(id).addEventListener("input", () => { most = STEP; $("written-order").disabled = Boolean($("written-prompt").value); show(); });
  }
  $("written-more").addEventListener("click", () => { most += 4 * STEP; show(); });
  $("runs").addEventListener("change", show);
  show();
} else {
  $("written-controls").hidden = true;
}
