// The frames of the pictures: as high as their page says it is, and light or dark as this page is.
// A page that was opened from the disk may not look into its frames, so they send messages.

const frames = () => document.querySelectorAll("iframe.playing");

addEventListener("message", ({ source, data }) => {
  const frame = [...frames()].find((one) => one.contentWindow === source);
  const height = Number(data?.minivllmHeight);
  if (!frame || !(height > 0)) return;
  frame.style.height = `${Math.min(height + 8, 4000)}px`;
  tell(frame);
});

const dark = matchMedia("(prefers-color-scheme: dark)");

function tell(frame) {
  const chosen = document.body.dataset.theme;
  const theme = ["light", "dark"].includes(chosen) ? chosen : dark.matches ? "dark" : "light";
  frame.contentWindow?.postMessage({ minivllmTheme: theme }, "*");
}

addEventListener("DOMContentLoaded", () => {
  const tellAll = () => frames().forEach(tell);
  new MutationObserver(tellAll).observe(document.body, { attributeFilter: ["data-theme"] });
  dark.addEventListener("change", tellAll);
});
