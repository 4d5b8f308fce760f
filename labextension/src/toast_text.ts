/** What of a text goes into a toast: JupyterLab cuts each at 140 characters. Pure. */

export const TOAST_CHARACTERS = 140;

/** The text where it is short enough, else its beginning, up to the end of a word; `more` says that there is more of it. */
export function toastText(text: string): { shown: string; more: boolean } {
  if (text.length <= TOAST_CHARACTERS) {
    return { shown: text, more: false };
  }
  const start = text.slice(0, TOAST_CHARACTERS - 2).replace(/[\ud800-\udbff]$/, '');
  const words = start.replace(/\s+\S*$/, '');
  return { shown: `${words.length > TOAST_CHARACTERS / 2 ? words : start} …`, more: true };
}
