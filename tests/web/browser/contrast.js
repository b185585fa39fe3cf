// Every piece of text that can be seen, with the contrast between its colour and what is painted under it (WCAG 2).
() => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const light = (c) => {
    const [r, g, b] = c.slice(0, 3).map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const shape = at instanceof SVGElement && !(at instanceof SVGSVGElement);
      const paint = shape ? getComputedStyle(at).fill : getComputedStyle(at).backgroundColor;
      if (paint && paint !== "none") layers.push(rgba(paint));
    }
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const owner = node.parentElement;
    if (!node.textContent.trim() || !owner.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true })) continue;
    if (owner.closest("title, noscript, .unseen, :disabled, option") || owner.matches("input:disabled + label")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
    if (!box.width || x < 0 || y < 0 || x > innerWidth || y > innerHeight) continue;
    const svg = owner instanceof SVGElement;
    // Text of the figure lies on a shape beside it, not in it: ask which one is under its middle.
    const under = svg ? document.elementsFromPoint(x, y).find((e) => getComputedStyle(e).fill !== "none" && !(e instanceof SVGTextElement)) : owner;
    if (!under || (svg && !under.closest("svg"))) continue;
    const back = ground(under);
    const front = over(rgba(svg ? getComputedStyle(owner).fill : getComputedStyle(owner).color), back);
    const [a, b] = [light(front), light(back)].sort((p, q) => q - p);
    found.push([node.textContent.trim().slice(0, 40), Math.round(100 * (a + 0.05) / (b + 0.05)) / 100, owner.className.baseVal ?? owner.className]);
  }
  return found;
}
