import { parseUsd, rateText, shareOf, sumUsd, usdText } from './money';

test('amounts are exact, and rounded only for people', () => {
  expect(parseUsd('0.000000000001')).toBe(1n);
  expect(parseUsd('12.5')).toBe(12_500_000_000_000n);
  expect(parseUsd('')).toBe(0n);
  expect(parseUsd('1e3')).toBe(0n);
  expect(sumUsd(Array(10).fill('0.1'))).toBe(parseUsd('1'));
  expect(sumUsd(['1', undefined, '-0.25'])).toBe(parseUsd('0.75'));
});

test('the words are those of the command line', () => {
  const shown = (text: string): string => usdText(parseUsd(text));
  expect([shown('0'), shown('1.234'), shown('0.1'), shown('0.0042'), shown('0.00001')]).toEqual(['$0.00', '$1.23', '$0.10', '$0.0042', '<$0.0001']);
  expect(shown('99.999')).toBe('$100.00');
  expect(usdText(-parseUsd('2'))).toBe('-$2.00');
  expect(rateText(parseUsd('0.000583'))).toBe('$2.10/h');
});

test('a share of nothing is nothing', () => {
  expect(shareOf(5n, 0n)).toBe(0);
  expect(shareOf(parseUsd('0.5'), parseUsd('2'))).toBe(0.25);
});
