import { TOAST_CHARACTERS, toastText } from './toast_text';

test('a short text is shown whole', () => {
  const text = 'x'.repeat(TOAST_CHARACTERS);
  expect(toastText(text)).toEqual({ shown: text, more: false });
});

test('of a long one whole words are shown, no more than JupyterLab shows', () => {
  const { shown, more } = toastText(`The volume was not made. ${'some words '.repeat(20)}the last`);
  expect(more).toBe(true);
  expect(shown.length).toBeLessThanOrEqual(TOAST_CHARACTERS);
  expect(shown).toMatch(/^The volume was not made\. .*(some|words) …$/);
});

test('a text without spaces is cut, and no letter of it is cut in two', () => {
  const { shown } = toastText('x' + '📈'.repeat(200));
  expect(shown.length).toBeLessThanOrEqual(TOAST_CHARACTERS);
  expect(shown.endsWith('📈 …')).toBe(true);
});
