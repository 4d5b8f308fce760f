/** The language that JupyterLab is in, for words that are made outside of a component. Set once, when the plugin starts. */

/** The part of JupyterLab's `TranslationBundle` that is used. */
export interface ISpoken {
  __(text: string, ...given: unknown[]): string;
  _n(one: string, many: string, count: number, ...given: unknown[]): string;
}

function filled(text: string, given: unknown[]): string {
  return text.replace(/%([1-9]\d*)/g, (all, number: string) => (Number(number) <= given.length ? String(given[Number(number) - 1]) : all));
}

/** English, as the sources have it. */
export const ENGLISH: ISpoken = {
  __: (text, ...given) => filled(text, given),
  _n: (one, many, count, ...given) => filled(count === 1 ? one : many, [count, ...given])
};

export const language: { trans: ISpoken } = { trans: ENGLISH };
