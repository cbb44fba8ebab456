// What the pages gain with JavaScript: times in the reader's zone, curves to point at, the cohort's size while typing.
// Everything here is optional; the server has already drawn it all.
"use strict";

const language = document.documentElement.lang;

function localTimes(root) {
  const format = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "medium" });
  for (const element of root.querySelectorAll("time[datetime]")) {
    element.title = element.textContent;
    element.textContent = format.format(new Date(element.dateTime));
  }
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function drawChart(figure) {
  const { xs, lines, end, range, share } = JSON.parse(figure.dataset.chart);
  const names = [...figure.querySelectorAll("polyline")].map((line) => line.getAttribute("class"));
  const write = (value) => (value === null ? "–" : share ? `${(value * 100).toFixed(2)} %` : value.toFixed(4));
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
  const holder = document.createElement("div");
  figure.append(holder);
  figure.classList.add("drawn");
  const legend = [...figure.querySelectorAll(".legend b")];
  const resting = legend.map((value) => value.textContent);
  const plot = new uPlot({
    width: holder.clientWidth,
    height: 240,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false } },
    scales: { x: { time: false, range: [0, Math.max(end, 1)] }, y: { range } },
    axes: [
      { ...axis, grid: { show: false }, size: 28, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000] },
      { ...axis, size: 52, values: (_, marks) => marks.map((mark) => (share ? `${Math.round(mark * 100)} %` : mark)) },
    ],
    series: [{}, ...names.map((name) => ({ stroke: colour(`--${name}`), width: 2, spanGaps: true, points: { size: 5 } }))],
    hooks: {
      setCursor: [(self) => {
        const at = self.cursor.idx;
        legend.forEach((value, i) => {
          value.textContent = at == null ? resting[i] : `${write(self.data[i + 1][at])} (${self.data[0][at]})`;
        });
      }],
    },
  }, [xs, ...lines], holder);
  const observer = new ResizeObserver(() => {
    if (!figure.isConnected) { observer.disconnect(); plot.destroy(); } else plot.setSize({ width: holder.clientWidth, height: 240 });
  });
  observer.observe(holder);
}

function enhance(root) {
  localTimes(root);
  for (const figure of root.querySelectorAll("[data-chart]:not(.drawn)")) drawChart(figure);
}

function cohortSize() {
  const clients = document.getElementById("num_clients");
  const fraction = document.getElementById("fraction_train");
  const output = document.getElementById("cohort");
  if (!clients || !fraction || !output) return;
  const show = () => {
    const [count, share] = [Number(clients.value), Number(fraction.value)];
    const possible = Number.isInteger(count) && count >= 1 && share > 0 && share <= 1;
    output.textContent = possible ? Math.max(Math.floor(Number((count * share).toFixed(6))), 1) : "–";
  };
  clients.addEventListener("input", show);
  fraction.addEventListener("input", show);
}

// Of the plug-ins' options, those of the chosen one are shown.
function chosenOptions() {
  for (const options of document.querySelectorAll("fieldset.options")) {
    const menu = document.getElementById(options.dataset.setting);
    const names = () => menu.value.split(",").map((name) => name.trim());
    const show = () => { options.hidden = !names().includes(options.dataset.plugin); };
    menu.addEventListener("input", show);
    show();
  }
}

// A live part is replaced as a whole: what the reader had opened stays open.
let opened = [];
document.addEventListener("htmx:beforeSwap", (event) => {
  opened = [...event.detail.target.querySelectorAll("details[open][id]")].map((element) => element.id);
});
document.addEventListener("htmx:afterSettle", () => {
  for (const id of opened) document.getElementById(id)?.setAttribute("open", "");
  enhance(document);
});

enhance(document);
cohortSize();
chosenOptions();
