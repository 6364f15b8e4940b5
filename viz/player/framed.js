// A page that plays in a frame of another one. Pages that were opened from the disk may not look into each
// other: they send messages. Ours says how high it is, and is told whether to be light or dark.
//
// After player.js; the other side of it: viz/book/static/book.js.

if (parent === window) document.documentElement.classList.remove("framed"); // it was opened by itself

addEventListener("message", ({ data: said }) => {
  if (["light", "dark"].includes(said?.minivllmTheme)) {
    document.documentElement.style.colorScheme = said.minivllmTheme;
  }
});

const tell = () => parent.postMessage({ minivllmHeight: document.body.scrollHeight }, "*");
new ResizeObserver(tell).observe(document.body);
tell();
