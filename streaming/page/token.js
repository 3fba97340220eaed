// The server's token, kept for this tab.

const NAME = "token";

/** Keeps a token that a person typed. */
export const keepToken = (token) => sessionStorage.setItem(NAME, token);

/** Headers of every request. */
export function headers() {
  const token = sessionStorage.getItem(NAME);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/** An address with the token in it, for event streams: a browser sends no such header there. */
export function withToken(url) {
  const token = sessionStorage.getItem(NAME);
  return token ? `${url}?token=${encodeURIComponent(token)}` : url;
}

/** Keeps the token that the page's address brought, and takes it out of the address. */
export function takeToken() {
  const found = location.search.match(/[?&]token=([^&]*)/);
  if (!found) return;
  keepToken(decodeURIComponent(found[1]));
  history.replaceState(null, "", location.pathname + location.hash);
}
