/** Which rows of a long list are in sight. Pure. */

export interface IWindow {
  first: number;
  /** One past the last. */
  end: number;
  before: number;
  after: number;
}

/** Rows of equal height; `margin` more are made above and below, so that scrolling shows no holes. */
export function visibleRows(count: number, rowHeight: number, scrollTop: number, height: number, margin = 5): IWindow {
  const top = Math.max(0, Math.min(scrollTop, count * rowHeight - height));
  const first = Math.max(0, Math.floor(top / rowHeight) - margin);
  const end = Math.min(count, Math.ceil((top + height) / rowHeight) + margin);
  return { first, end, before: first * rowHeight, after: (count - end) * rowHeight };
}
