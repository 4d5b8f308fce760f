import { parseDotenv } from './dotenv';

interface ICase {
  text: string;
  values?: Record<string, string>;
  duplicates?: string[];
  refused_line?: number;
}

declare const __dirname: string;
const fs = jest.requireActual<{ readFileSync(path: string, encoding: 'utf8'): string }>('fs');
const CASES: ICase[] = JSON.parse(fs.readFileSync(`${__dirname}/../../tests/protocol/dotenv_cases.json`, 'utf8'));

test.each(CASES.map(one => [JSON.stringify(one.text), one] as const))('as the SDK reads %s', (_, one) => {
  const { values, duplicates, problem } = parseDotenv(one.text);
  expect(problem?.line).toBe(one.refused_line);
  expect(Object.fromEntries(values)).toEqual(one.values ?? {});
  expect(duplicates).toEqual(one.duplicates ?? []);
});

test('there are cases', () => {
  expect(CASES.length).toBeGreaterThan(30);
});

test('what cannot be read is told by its line and a word, never with a value', () => {
  expect(JSON.stringify(parseDotenv('A=1\nsk-secret').problem)).toBe('{"line":2,"why":"no pair"}');
  expect(JSON.stringify(parseDotenv('A=1\nB="sk-secret').problem)).toBe('{"line":2,"why":"open quote"}');
  expect(JSON.stringify(parseDotenv('A="x" sk-secret').problem)).toBe('{"line":1,"why":"behind quote"}');
});

test('a key that is the name of something else is a key', () => {
  expect([...parseDotenv('__proto__=1\nconstructor=2').values]).toEqual([['__proto__', '1'], ['constructor', '2']]);
});
