// Draws the charts of a page with the compressed library that is in it, and copies commands.
for (const button of document.querySelectorAll(".command button")) {
  button.onclick = () => {
    getSelection().selectAllChildren(button.previousElementSibling);
    button.textContent = document.execCommand("copy") ? "copied" : "press Ctrl+C";
  };
}

const charts = [...document.querySelectorAll(".chart")];

async function draw(library) {
  const bytes = Uint8Array.from(atob(library), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  for (const place of charts) {
    const { data, layout } = JSON.parse(place.querySelector("script").textContent);
    await Plotly.newPlot(place, data, layout, { displaylogo: false, responsive: true });
  }
}

const library = document.getElementById("library");
if (library) draw(library.textContent);

// a sheet of paper is narrower than a window, and shows what is folded
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  for (const place of charts) Plotly.relayout(place, { width: Math.min(680, place.clientWidth) });
});
addEventListener("afterprint", () => {
  for (const place of charts) Plotly.relayout(place, { width: null, autosize: true });
});
