// Makes the page live: sorting, filters, views, provenance, plots and the theme. What comes from results enters the page
// as text, never as markup; the tables stand in the HTML and can be read without this script.
"use strict";

(() => {
  const data = (window.priorBench ??= {});
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const form = document.getElementById("filters");

  /** An element with attributes and children; text is only ever text. */
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }

  /** Run a script of the page once; a page from disk cannot fetch. */
  const scripts = new Map();
  function run(source) {
    if (!scripts.has(source)) {
      scripts.set(source, new Promise((resolve, reject) => {
        const script = make("script", { src: source });
        script.onload = resolve;
        script.onerror = () => reject(new Error(`${source} cannot be read`));
        document.head.append(script);
      }));
    }
    return scripts.get(source);
  }
  const load = (name) => run(`data/${name}.js`).then(() => data[name]);

  // ------------------------------------------------------------------------------------------- tables

  class Table {
    constructor(element) {
      this.element = element;
      this.id = element.closest("section").id;
      this.heads = all("thead th", element);
      this.bodies = all("tbody", element).map((body) => ({ body, rows: all("tr[data-method]", body) }));
      this.rows = this.bodies.flatMap(({ rows }) => rows);
      this.start = this.current();
      this.heads.forEach((head, at) => head.querySelector(".sort").addEventListener("click", () => this.choose(at)));
    }

    current() {
      const at = this.heads.findIndex((head) => head.hasAttribute("aria-sort"));
      return { at, down: at >= 0 && this.heads[at].getAttribute("aria-sort") === "descending" };
    }

    /** A header was chosen: the best first, and the other way round when it is chosen again. */
    choose(at) {
      const { at: before, down } = this.current();
      this.sort(at, at === before ? !down : this.heads[at].dataset.kind === "down");
      keepState();
    }

    sort(at, down) {
      this.heads.forEach((head) => head.removeAttribute("aria-sort"));
      this.heads[at].setAttribute("aria-sort", down ? "descending" : "ascending");
      this.arrange();
    }

    /** Put the rows in order, each track by itself or all together; what has no value comes last. */
    arrange() {
      const { at, down } = this.current();
      const key = (row) => row.cells[Math.max(at, 0)].dataset.sort ?? "";
      const text = this.heads[Math.max(at, 0)].dataset.kind === "text";
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return (down ? -1 : 1) * (text ? x.localeCompare(y) : Number(x) - Number(y));
      };
      const grouped = form.elements.grouped.checked;
      this.element.classList.toggle("grouped", grouped);
      const parts = grouped ? this.bodies : [{ body: this.bodies[0].body, rows: this.rows }];
      for (const { body, rows } of parts) {
        const sorted = at < 0 ? rows : [...rows].sort(compare);
        const aside = body.querySelector(".aside");
        for (const row of sorted) body.insertBefore(row, aside);
      }
    }
  }

  /** A table of numbers, of which one view is shown at a time. */
  class Numbers extends Table {
    constructor(element) {
      super(element);
      this.section = element.closest("section");
      this.select = this.section.querySelector("select.view");
      this.view = 0;
      this.select?.addEventListener("change", () => {
        this.show(Number(this.select.value));
        changed();
      });
    }

    show(at) {
      this.view = at;
      if (this.select) this.select.value = String(at);
      const view = data.page.views[this.id][at];
      this.section.querySelector(".about").textContent = view.caption;
      for (const head of this.heads.filter((one) => one.dataset.number)) {
        const number = Number(head.dataset.number);
        head.dataset.kind = view.higher ? "down" : "up";
        head.querySelector(".sort").textContent = view.header[number] ?? "";
      }
      for (const row of this.rows) {
        for (const cell of all("td[data-number]", row)) {
          this.fill(cell, view.rows[Number(row.dataset.row)][Number(cell.dataset.number)] ?? null);
        }
      }
      const { at: sorted, down } = this.current();
      const gone = this.heads[sorted]?.classList.contains("rank") || !this.shown(this.heads[sorted]);
      this.sort(gone ? 1 : sorted, gone ? view.higher : down);
    }

    fill(cell, number) {
      const [text, interval, after, bold, sort, bar] = number ?? ["–", "", "", false, null, null];
      cell.dataset.sort = sort ?? "";
      const button = cell.querySelector(".number");
      if (button === null) return; // not run, in every view
      const shown = button.querySelector(".text");
      shown.textContent = text;
      shown.classList.toggle("best", bold);
      button.querySelector(".interval").textContent = interval;
      cell.querySelector(".after").textContent = after;
      const drawn = cell.querySelector(".bar");
      drawn.hidden = bar === null;
      ["--low", "--mean", "--high"].forEach((name, i) => drawn.style.setProperty(name, bar?.[i] ?? 0));
    }

    /** Whether a column belongs to the view; ranks are those of the main metric. */
    shown(head) {
      if (head.classList.contains("rank")) return this.view === 0;
      return head.dataset.number === undefined || Number(head.dataset.number) < data.page.views[this.id][this.view].header.length;
    }
  }

  const tables = all("table.sortable").map((element) =>
    element.classList.contains("numbers") ? new Numbers(element) : new Table(element));

  // ------------------------------------------------------------------------------------------ filters

  const chosen = (name) => new Set(all(`input[name="${name}"]:checked`, form).map((input) => input.value));
  const passes = (wanted, value) => wanted.size === 0 || value === undefined || wanted.has(value);

  function applyFilters() {
    const wanted = Object.fromEntries(["method", "task", "dataset", "fraction", "track", "profile"].map((n) => [n, chosen(n)]));
    const { references, grouped } = form.elements;
    const counts = { rows: 0, allRows: 0, tables: 0, allTables: 0 };
    for (const table of tables) {
      const section = table.element.closest("section");
      const columns = table.heads.map((head) => {
        const kept = passes(wanted.fraction, head.dataset.fraction) && (table.shown?.(head) ?? true);
        head.hidden = !kept;
        return kept;
      });
      for (const row of table.rows) {
        row.hidden = !passes(wanted.method, row.dataset.method) || !passes(wanted.track, row.dataset.track) ||
          (row.dataset.reference === "1" && !references.checked);
      }
      for (const row of all("tbody tr:not(.group)", table.element)) {
        [...row.cells].forEach((cell, at) => { cell.hidden = !columns[at]; });
      }
      const rows = table.rows.filter((row) => !row.hidden).length;
      const numbers = columns.some((kept, at) => kept && at > 0);
      section.hidden = !passes(wanted.task, section.dataset.task) || !passes(wanted.dataset, section.dataset.dataset) ||
        !passes(wanted.profile, section.dataset.profile) || rows === 0 || !numbers;
      for (const { body, rows: own } of table.bodies) {
        const visible = own.some((row) => !row.hidden);
        for (const line of all(".group, .aside", body)) line.hidden = !grouped.checked || !visible;
        const aside = body.querySelector(".aside");
        if (aside && table.view) aside.hidden = true; // detectable differences are those of the main metric
        const width = columns.filter(Boolean).length;
        body.querySelector(".group > th")?.setAttribute("colspan", width);
      }
      table.arrange();
      if (table instanceof Numbers) {
        counts.rows += section.hidden ? 0 : rows;
        counts.tables += !section.hidden;
        counts.allRows += table.rows.length;
        counts.allTables += 1;
      }
    }
    for (const item of all("figure[data-task]")) {
      item.hidden = ["task", "dataset", "profile", "track"].some((name) => !passes(wanted[name], item.dataset[name] || undefined));
    }
    for (const link of all("nav a")) {
      link.parentElement.hidden = document.getElementById(link.hash.slice(1))?.hidden ?? false;
    }
    document.getElementById("count").textContent =
      `${counts.rows} of ${counts.allRows} rows in ${counts.tables} of ${counts.allTables} tables`;
  }

  // --------------------------------------------------- the state in the address: filters, sorting, views

  function keepState() {
    const state = new URLSearchParams();
    for (const input of all("input", form)) {
      if (input.checked === input.defaultChecked) continue;
      if (input.name === "references" || input.name === "grouped") state.append(input.name, "0");
      else state.append(input.name, input.value);
    }
    for (const table of tables) {
      const { at, down } = table.current();
      if (table.view) state.append("view", `${table.id}:${table.view}`);
      if (at !== table.start.at || down !== table.start.down) state.append("sort", `${table.id}:${at}:${down ? 1 : 0}`);
    }
    const text = state.toString();
    history.replaceState(null, "", text || location.hash.startsWith("#/") ? `#/${text}` : location.hash || "#");
  }

  function readState() {
    if (!location.hash.startsWith("#/")) return;
    const state = new URLSearchParams(location.hash.slice(2));
    for (const input of all("input", form)) {
      if (input.name === "references" || input.name === "grouped") input.checked = state.get(input.name) !== "0";
      else input.checked = state.getAll(input.name).includes(input.value);
    }
    const by = (id) => tables.find((table) => table.id === id);
    for (const [id, at] of state.getAll("view").map((text) => text.split(":"))) {
      const table = by(id);
      if (table instanceof Numbers && data.page.views[id][Number(at)]) table.show(Number(at));
    }
    for (const [id, at, down] of state.getAll("sort").map((text) => text.split(":"))) {
      const table = by(id);
      if (table?.heads[Number(at)]) table.sort(Number(at), down === "1");
    }
  }

  function changed() {
    applyFilters();
    keepState();
  }

  form.addEventListener("change", changed);
  form.addEventListener("reset", () => setTimeout(changed));
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", () => { readState(); applyFilters(); });

  // --------------------------------------------------------------------------------------- provenance

  const dialog = document.getElementById("provenance");
  const heading = document.getElementById("provenance-title");

  function open(title, ...content) {
    heading.textContent = title;
    dialog.querySelector(".body").replaceChildren(...content.filter(Boolean));
    if (!dialog.open) dialog.showModal();
    dialog.querySelector(".body").scrollTop = 0;
    heading.focus();
  }
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  const shown = (value) => {
    if (value === null || value === undefined || value === "") return "–";
    if (typeof value === "number" && !Number.isInteger(value)) return String(Number(value.toPrecision(6)));
    return String(value);
  };
  const limits = (pair) => (pair ? `[${pair.map((value) => Number(value).toFixed(4)).join(", ")}]` : "–");
  const fixed = (value) => (typeof value === "number" ? value.toFixed(4) : "–");
  const plain = (value) => value === null || typeof value !== "object";

  function grid(label, header, rows) {
    return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, make("table", {},
      make("thead", {}, make("tr", {}, ...header.map((text) => make("th", { scope: "col" }, text)))),
      make("tbody", {}, ...rows.map(([first, ...rest]) => make("tr", {}, make("th", { scope: "row" }, first),
        ...rest.map((text) => make("td", text.startsWith("[") ? { class: "whole" } : {}, text)))))));
  }

  /** Whatever a result has recorded: objects as lists of names and values, lists of like objects as tables. */
  function tree(value, label) {
    if (plain(value)) return document.createTextNode(shown(value));
    if (Array.isArray(value)) {
      if (value.every(plain)) return document.createTextNode(value.length ? value.map(shown).join(", ") : "none");
      const names = value.every((item) => item && !Array.isArray(item) && typeof item === "object")
        ? [...new Set(value.flatMap(Object.keys))] : [];
      if (names.length && value.every((item) => Object.values(item).every(plain))) {
        return grid(label, names, value.map((item) => names.map((name) => shown(item[name]))));
      }
      return make("dl", {}, ...value.flatMap((item, i) => [make("dt", {}, `${i + 1}`), make("dd", {}, tree(item, label))]));
    }
    const names = Object.keys(value);
    if (!names.length) return document.createTextNode("none");
    return make("dl", {}, ...names.flatMap((name) => [make("dt", {}, name), make("dd", {}, tree(value[name], name))]));
  }

  const label = (row) => `${row.method} (${[row.recipe ?? row.track, row.pretrain_source ?? row.source].filter((x) => x && x !== "none").join(", ")})`;

  function comparisons(entry) {
    if (!entry.comparisons.length) return [];
    const rows = entry.comparisons.map((one) => {
      const ours = one.a.method === entry.method && one.a.recipe === entry.track && one.a.pretrain_source === entry.source;
      const sign = ours ? 1 : -1;
      const interval = ours ? one.interval : [-one.interval[1], -one.interval[0]];
      const better = one.better === null ? "tied" : (one.better === "a") === ours ? "better" : "worse";
      return [label(ours ? one.b : one.a), fixed(sign * one.difference), limits(interval), one.p_holm < 0.001 ? "< 0.001" : one.p_holm.toFixed(3), fixed(one.detectable), better];
    });
    return [make("h3", {}, "Compared with the methods of its track, in the same draws"),
      grid("Comparisons", ["with", "difference", "95 % interval", "p (Holm)", "detectable", "so it is"], rows)];
  }

  function runs(entry, cells) {
    const rows = cells.map(({ cell, metrics }) => {
      const metric = metrics.find((one) => one.name === entry.main) ?? metrics[0];
      return [`subset ${cell.subset_seed}, head ${cell.head_seed}, pre-training ${cell.pretrain_seed}`, fixed(metric?.value),
        limits(metric?.interval), cell.digest];
    });
    return [make("h3", {}, "Runs"), grid("Runs", ["seeds", entry.main ?? "value", "95 % interval", "cell"], rows)];
  }

  function metrics(entry, cells) {
    const counts = (name) => Object.entries(cells[0]?.metrics.find((one) => one.name === name)?.counts ?? {})
      .map(([key, value]) => `${key} ${value}`).join(", ");
    const rows = entry.metrics.filter((one) => one.metric).map((one) => [
      one.metric, one.status === "undefined" ? `undefined: ${one.reason}` : fixed(one.mean),
      limits(one.interval_low === null ? null : [one.interval_low, one.interval_high]),
      [["subset", one.subset_deviation], ["head", one.head_deviation], ["pre-training", one.pretrain_deviation]]
        .filter(([, value]) => value !== null).map(([kind, value]) => `${kind} ${value.toFixed(4)}`).join(", ") || "–",
      counts(one.metric)]);
    return [make("h3", {}, "All metrics, rebuilt from the predictions"),
      grid("Metrics", ["metric", "mean over runs", "95 % interval", "deviation over seeds", "counts"], rows)];
  }

  function origin(name, one) {
    const { command, commit, finished, device, precision, seconds, packages, ...others } = one.provenance;
    return make("details", {}, make("summary", {}, name),
      ...one.remarks.map((text) => make("p", { class: "warning" }, text)),
      make("h4", {}, "The cell"), tree(one.cell, "cell"),
      make("h4", {}, "Metrics and counts"),
      grid("Metrics of the run", ["metric", "value", "95 % interval", "counts"], one.metrics.map((metric) => [metric.name,
        metric.value === null ? `undefined: ${metric.reason}` : fixed(metric.value), limits(metric.interval),
        Object.entries(metric.counts).map(([key, value]) => `${key} ${value}`).join(", ")])),
      make("h4", {}, "Recorded by the run, not rebuilt"),
      tree({ command, commit, finished, device, precision, seconds, ...others, details: one.details, packages }, "provenance"));
  }

  async function explainNumber(button) {
    const file = await load(button.dataset.section);
    const entry = file.entries[button.dataset.key];
    const cells = entry.cells.map((name) => file.cells[name]);
    const table = tables.find((one) => one.id === button.dataset.section);
    const view = data.page.views[table.id][table.view];
    const name = entry.fraction ? view.label : view.header[Number(button.closest("td").dataset.number)];
    const size = entry.fraction ? `, ${entry.fraction} of the training data` : "";
    open(`${label(entry)}${size}`,
      make("p", {}, `${entry.place}; profile ${entry.profile}, protocol version ${entry.version}.`),
      entry.note ? make("p", { class: "warning" }, `${entry.method}: ${entry.note}.`) : null,
      make("p", { class: "headline" }, make("small", {}, `${name} `), button.textContent.replace(/\s+/g, " ").trim(),
        entry.rank && table.view === 0 && name === entry.main ? make("small", {}, ` rank ${entry.rank} of its track`) : null),
      ...entry.not_applicable.map((reason) => make("p", {}, `Not applicable: ${reason}.`)),
      ...(cells.length ? [
        make("p", {}, `Measured here: the mean over ${cells.length} ${cells.length === 1 ? "run" : "runs"}, rebuilt from saved predictions. No published number is part of it.`),
        ...runs(entry, cells), ...comparisons(entry), ...metrics(entry, cells),
        make("h3", {}, "Where each run came from"), ...entry.cells.map((cell) => origin(cell, file.cells[cell]))] : []));
  }

  function explainRank(button) {
    const row = button.closest("tr");
    const { places, orders, caption } = data.page.overviews[button.dataset.overview];
    const own = orders[Number(button.dataset.at)];
    open(`${row.dataset.method} (${row.dataset.track}): mean rank`,
      make("p", { class: "headline" }, button.textContent.replace(/\s+/g, " ").trim()), make("p", {}, caption),
      grid("Order in each cell", ["cell", "order"], places.map((place, i) => [place, shown(own[i])])));
  }

  function explainPublished(button) {
    const { warning, ...number } = data.page.published[Number(button.dataset.published)];
    open(`${number.method}: ${number.metric} on ${number.dataset}`, make("p", { class: "warning" }, warning),
      make("p", { class: "headline" }, button.textContent.replace(/\s+/g, " ").trim()), tree(number, "number"));
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.number");
    if (button === null) return;
    const explain = button.dataset.overview ? explainRank : button.dataset.published ? explainPublished : explainNumber;
    Promise.resolve(explain(button)).catch((error) => open("Provenance", make("p", { class: "warning" }, error.message)));
  });

  // -------------------------------------------------------------------------------------------- plots

  const drawn = new Map(); // figure to the element that Plotly draws in

  const colours = () => {
    const style = getComputedStyle(document.body);
    const surface = getComputedStyle(document.querySelector("figure")).backgroundColor;
    return { "font.color": style.color, "hoverlabel.bgcolor": surface, "hoverlabel.font.color": style.color, "modebar.bgcolor": "transparent",
      "modebar.color": style.color, "modebar.activecolor": style.color };
  };

  /** Which traces the filters leave; one that belongs to no method stays. */
  function visibility(traces) {
    const methods = chosen("method");
    return traces.map(({ meta }) => meta === undefined ||
      (passes(methods, meta.method) && (form.elements.references.checked || !meta.reference)));
  }

  /** The legend right of a wide plot, and below a narrow one, which grows by it. */
  function withLegend(layout, traces, width) {
    const { legend, ...rest } = layout;
    const names = traces.filter((one) => one.showlegend !== false).map((one) => one.name ?? "");
    if (width >= 640) return { ...rest, height: 400, legend: { x: 1.02, y: 1, yanchor: "top" } };
    const columns = Math.max(1, Math.floor(width / (60 + 6.5 * Math.max(...names.map((name) => name.length)))));
    const below = names.length ? 12 + 21 * Math.ceil(names.length / columns) : 0;
    return { ...rest, height: layout.height - 60 + below, margin: { ...rest.margin, b: rest.margin.b + below },
      legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom" } };
  }

  async function draw(figure) {
    const [, { data: traces, layout }] = await Promise.all([run("assets/plotly.min.js"), load(`plots/${figure.id}`)]);
    const { updatemenus, ...rest } = layout;
    const place = figure.querySelector(".drawing");
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const margin = { ...rest.margin, t: 28 };
    await Plotly.newPlot(place, traces, {
      ...withLegend({ ...rest, margin }, traces, place.clientWidth), paper_bgcolor: "transparent", plot_bgcolor: "transparent",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12 }, transition: { duration: still ? 0 : 150 } },
    { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
    for (const svg of all("svg.main-svg", place)) svg.setAttribute("aria-hidden", "true"); // its label says what it shows
    place.style.minHeight = "";
    drawn.set(figure, place);
    await Plotly.relayout(place, colours());
    await Plotly.restyle(place, { visible: visibility(traces) });
    const select = figure.querySelector("select.panel");
    const show = () => Plotly.update(place, ...structuredClone(updatemenus[0].buttons[Number(select.value)].args));
    select?.addEventListener("change", show);
    if (select && select.value !== "0") await show();
  }

  const drawer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      drawer.unobserve(target);
      draw(target).catch((error) => target.querySelector(".drawing").replaceChildren(make("p", { class: "warning" }, error.message)));
    }
  }, { rootMargin: "400px 0px" });
  all("figure.plot").forEach((figure) => drawer.observe(figure));

  function filterPlots() {
    for (const place of drawn.values()) Plotly.restyle(place, { visible: visibility(place.data) });
  }
  form.addEventListener("change", filterPlots);
  form.addEventListener("reset", () => setTimeout(filterPlots));
  document.addEventListener("themed", () => {
    for (const place of drawn.values()) Plotly.relayout(place, colours());
  });
  document.addEventListener("change", ({ target }) => {
    if (!target.matches(".kinds input")) return;
    const section = target.closest("section");
    for (const figures of all(".figures", section)) figures.hidden = figures.dataset.kind !== target.value;
    for (const figure of all(".figures:not([hidden]) figure", section)) if (drawn.has(figure)) Plotly.Plots.resize(drawn.get(figure));
  });

  // -------------------------------------------------------------------------------------------- theme

  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);

  function themed() {
    theme.setAttribute("aria-checked", String(isDark()));
    document.dispatchEvent(new Event("themed"));
  }
  try { root.dataset.theme = localStorage.getItem("prior-bench-theme") ?? ""; } catch { /* a page from disk may have no storage */ }
  theme.hidden = false;
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("prior-bench-theme", root.dataset.theme); } catch { /* it lasts as long as the page */ }
    themed();
  });
  dark.addEventListener("change", themed);

  // -------------------------------------------------------------------------------------------- start

  const visible = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) visible[isIntersecting ? "add" : "delete"](target.id);
    const links = all("nav a").filter((link) => !link.parentElement.hidden);
    const here = links.find((link) => visible.has(link.hash.slice(1)));
    for (const link of links) link.toggleAttribute("aria-current", link === here);
  }, { rootMargin: "0px 0px -60% 0px" });
  all("main > section").forEach((section) => watcher.observe(section));

  if (matchMedia("(max-width: 60rem)").matches) document.querySelector(".filters").open = false;
  readState();
  applyFilters();
  themed();
})();
