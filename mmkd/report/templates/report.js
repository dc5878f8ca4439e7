// Draws every chart of the page from the specification that stands in it.
for (const figure of document.querySelectorAll("figure.chart")) {
  const spec = JSON.parse(figure.querySelector("script").textContent);
  const canvas = figure.querySelector(".canvas");
  vegaEmbed(canvas, spec, { mode: "vega-lite", renderer: "svg", actions: false }).catch(() => {
    figure.classList.add("undrawn"); // its table is there
  });
}
