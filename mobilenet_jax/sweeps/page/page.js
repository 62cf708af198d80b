'use strict';
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const chosen = new Set();  // numbers of runs
  const all = (query, within = document) => [...within.querySelectorAll(query)];
  const GAP = 66;  // of an axis, beside the drawing area

  // Charts. Each is drawn anew when its data, its colour or the width of the page changes.

  function panelOf(place) { return data.panels[place.dataset.panel]; }

  function optionOf(place) {
    const select = document.querySelector(`[data-colour="${place.dataset.panel}"]`);
    return select ? Number(select.value) : 0;
  }

  const sets = {
    costs: panel => ({
      points: panel.points.map(point => ({...point, chosen: point.runs.some(run => chosen.has(run))})), ends: panel.ends}),
    parallel: panel => ({
      ticks: panel.ticks,
      lines: panel.lines.map(line => ({...line, chosen: panel.points[line.id].runs.some(run => chosen.has(run))}))}),
    curves: panel => {
      const runs = [...chosen].map(run => data.runs[run]).filter(run => run.task === panel.task);
      const rows = name => runs.flatMap(run => run[name].map(([step, value]) => ({run: run.name, step, value})));
      return {evaluations: rows('evaluations'), losses: rows('losses')};
    },
  };

  function specOf(place) {
    const {chart} = place.dataset, panel = panelOf(place);
    const spec = structuredClone(chart === 'costs' ? panel.costs[optionOf(place)] : panel[chart]);
    spec.datasets = sets[chart](panel);
    const room = place.clientWidth, narrow = room < 640;
    if (spec.concat) {
      spec.columns = narrow ? 1 : 2;
      for (const part of spec.concat) part.width = Math.max(narrow ? room - GAP : room / 2 - GAP, 120);
    } else {
      spec.width = Math.max(room - 20, 120);
      spec.config.axisX = {labelAngle: narrow ? -35 : 0};
      spec.config.text = {limit: spec.width / new Set(panel.ticks.map(tick => tick.axis)).size - 14};
    }
    Object.assign(spec.config.legend, {columns: Math.max(Math.floor(room / 160), 1), labelLimit: narrow ? room / 2 - 50 : 260});
    return spec;
  }

  function legendsBelowEachOther(vega) {  // which Vega-Lite cannot say
    vega.config.legend.layout = {bottom: {anchor: 'start', direction: 'vertical', margin: 6}};
    return vega;
  }

  async function draw(place) {
    const options = {
      mode: 'vega-lite', ast: true, renderer: 'svg', actions: false, defaultStyle: false,
      tooltip: {disableDefaultStyle: true}, patch: legendsBelowEachOther};
    const before = place.result, spec = specOf(place);
    if (Object.values(spec.datasets).every(rows => !rows.length)) {
      place.result = undefined;
      place.textContent = 'None is chosen, or none has a curve.';
    } else {
      place.result = await vegaEmbed(place, spec, options);
    }
    if (before) before.finalize();
    if (!place.result) return;
    place.result.view.addEventListener('click', (event, item) => {
      const runs = item && item.datum && panelOf(place).points[item.datum.id]?.runs;
      if (place.dataset.chart !== 'curves' && runs) choose(runs, !runs.some(run => chosen.has(run)));
    });
  }

  const places = all('[data-chart]');
  const waiting = new Map();
  function drawLater(place) {  // one after another, the last wish counts
    waiting.set(place, (waiting.get(place) ?? Promise.resolve()).then(() => draw(place)).catch(error => {
      const problem = document.getElementById('problem');
      problem.hidden = false;
      problem.textContent = `A chart cannot be drawn: ${error.message}. The tables have its numbers.`;
    }));
    return waiting.get(place);
  }

  // Chosen runs.

  function choose(runs, on) {
    for (const run of runs.filter(run => data.runs[run].name)) on ? chosen.add(run) : chosen.delete(run);
    all('[data-run]').forEach(box => { box.checked = chosen.has(Number(box.dataset.run)); });
    places.forEach(place => place.dataset.chart === 'curves' || !place.result ? drawLater(place) : mark(place));
  }

  function mark(place) {  // keeps what is brushed
    const name = place.dataset.chart === 'costs' ? 'points' : 'lines';
    place.result.view.data(name, sets[place.dataset.chart](panelOf(place))[name]).runAsync();
  }

  // Tables.

  function keyOf(row, column) {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  }

  function compare(a, b) {
    if (typeof a !== typeof b) return typeof a === 'number' ? -1 : 1;
    return typeof a === 'number' ? a - b : a.localeCompare(b, 'en', {numeric: true});
  }

  function sort(button) {
    const header = button.closest('th'), body = header.closest('table').tBodies[0], column = header.cellIndex;
    const down = header.getAttribute('aria-sort') === 'ascending';
    all('[aria-sort]', header.parentNode).forEach(other => other.setAttribute('aria-sort', 'none'));
    header.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const missing = row => typeof keyOf(row, column) === 'string' && keyOf(row, column) === '–';
    body.append(...[...body.rows].sort((a, b) => (
      missing(a) - missing(b) || (down ? -1 : 1) * compare(keyOf(a, column), keyOf(b, column)))));
  }

  function filter(input) {
    const rows = [...document.getElementById(input.dataset.filter).tBodies[0].rows];
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
    const left = rows.filter(row => !row.hidden).length;
    document.querySelector(`[data-count="${input.dataset.filter}"]`).textContent =
      left === rows.length ? `${left} rows` : `${left} of ${rows.length} rows`;
  }

  all('.sortable thead button').forEach(button => button.addEventListener('click', () => sort(button)));
  all('[data-filter]').forEach(input => input.addEventListener('input', () => filter(input)));
  all('[data-run]').forEach(box => box.addEventListener('change', () => choose([Number(box.dataset.run)], box.checked)));
  all('[data-clear]').forEach(button => button.addEventListener('click', () => choose([...chosen], false)));
  all('[data-colour]').forEach(select => select.addEventListener('change', () => places.filter(
    place => place.dataset.chart === 'costs' && place.dataset.panel === select.dataset.colour).forEach(drawLater)));

  let width = document.documentElement.clientWidth, timer;
  addEventListener('resize', () => {
    if (document.documentElement.clientWidth === width) return;  // a phone's address bar came or went
    width = document.documentElement.clientWidth;
    clearTimeout(timer);
    timer = setTimeout(() => places.forEach(drawLater), 150);
  });

  // At first: the best, the middle and the worst point of a task, or if none has finished, some of its runs.
  choose(data.panels.flatMap(panel => {
    const ranked = [...panel.points].sort((a, b) => b.value - a.value);
    const runs = ranked.length ? ranked.map(point => point.runs[0]) :
      [...data.runs.keys()].filter(run => data.runs[run].task === panel.task);
    return [0, Math.floor(runs.length / 2), runs.length - 1].flatMap(i => runs[i] ?? []);
  }), true);
})();
