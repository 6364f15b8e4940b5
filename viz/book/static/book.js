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

// What screen readers miss in the theme: how deep a heading is, and which of two side bars is which.
function mend() {
  for (const heading of document.querySelectorAll('p.caption[role="heading"]')) {
    heading.setAttribute("aria-level", "2");
  }
  for (const bar of ["sidebar", "toc"]) {
    const drawer = document.querySelector(`.${bar}-drawer`);
    const words = drawer?.querySelector(".sidebar-brand-text, .toc-title")?.textContent;
    drawer?.setAttribute("aria-label", words ?? bar);
  }
}

addEventListener("DOMContentLoaded", () => {
  mend();
  const tellAll = () => frames().forEach(tell);
  new MutationObserver(tellAll).observe(document.body, { attributeFilter: ["data-theme"] });
  dark.addEventListener("change", tellAll);
});
