// A link to the channel on screen, without the token that the page may hold.

import { $, say } from "./dom.js";

/** Hands the link to the device's own sharing, or to the clipboard, or shows it. */
export async function share(id) {
  const url = `${location.href.split(/[?#]/)[0]}#${encodeURIComponent(id)}`;
  if (navigator.share && matchMedia("(pointer: coarse)").matches) {
    // A person may think better of it.
    return navigator.share({ title: document.title, url }).catch(() => {});
  }
  try {
    await navigator.clipboard.writeText(url);
    say("The link is copied.");
  } catch {
    // Browsers let pages write there over HTTPS only.
    $("link").value = url;
    $("sharing").showModal();
    $("link").select();
  }
}
