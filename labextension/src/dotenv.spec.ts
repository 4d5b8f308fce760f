import { parseDotenv } from './dotenv';

test('plain lines, quotes, comments, export', () => {
  const text = '\ufeff# keys\r\nexport A = one\r\nB="two # not a comment"\nC=\'$three\' \nD=four # a comment\nE=\n\n';
  expect(parseDotenv(text)).toEqual({ values: { A: 'one', B: 'two # not a comment', C: '$three', D: 'four', E: '' }, problems: [] });
});

test('a value of several lines, with escapes in double quotes only', () => {
  const text = 'KEY="-----BEGIN\nabc\\n\\"x\\"\nEND"\nRAW=\'a\\nb\'\nNEXT=1';
  expect(parseDotenv(text).values).toEqual({ KEY: '-----BEGIN\nabc\n"x"\nEND', RAW: 'a\\nb', NEXT: '1' });
});

test('the last of two lines with one key holds', () => {
  expect(parseDotenv('A=1\nA=2').values).toEqual({ A: '2' });
});

test('what cannot be taken is named without a value', () => {
  const { values, problems } = parseDotenv('sk-secret-value\nA="sk-open\nB=1');
  expect(values).toEqual({ B: '1' });
  expect(problems).toEqual(['line 1 is not KEY=VALUE', 'the quote of A (line 2) is not closed']);
});
