/** A pasted `.env`: the rules of the SDK's `Secret.from_dotenv` (protocol/cellburst_protocol/dotenv.py). Both are held to them by one
 *  table, tests/protocol/dotenv_cases.json. Pure; nothing is kept, and no problem shows a value. */

export interface IParsed {
  /** Keys and values in their order. A key that stands twice has the last value. */
  values: Map<string, string>;
  /** Keys that stand twice or more. */
  duplicates: string[];
  /** Why it cannot be read; nothing is taken then. */
  problem: { line: number; why: Why } | null;
}

export type Why = 'no pair' | 'open quote' | 'behind quote';

const SPACE = '\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000'; // what Python calls white space
const START = new RegExp(`[ \\t]*(?:export[ \\t]+)?([^${SPACE}=#'"]+)[ \\t]*=[ \\t]*`, 'y');
const BLANK = /[ \t]*(?:#[^\n]*)?(?:\n|$)/y;
const UNQUOTED = /[^\n]*/y;
const COMMENT = /(?:^|[ \t])#[^\n]*/;
const ENDS = new RegExp(`^[${SPACE}]+|[${SPACE}]+$`, 'g');
const QUOTED: Record<string, RegExp> = { "'": /'((?:\\'|[^'])*)'/y, '"': /"((?:\\[^]|[^"\\])*)"/y };
const MEANS: Record<string, string> = { n: '\n', r: '\r', t: '\t', '"': '"', "'": "'", '\\': '\\', $: '$', '`': '`' };

class Unreadable extends Error {
  constructor(readonly position: number, readonly why: Why) {
    super(why);
  }
}

/** KEY=VALUE lines; quotes, `export`, comments, and values of several lines in quotes. */
export function parseDotenv(given: string): IParsed {
  const text = given.replace(/^\ufeff/, '').replace(/\r\n?/g, '\n');
  const values = new Map<string, string>();
  const duplicates = new Set<string>();
  try {
    for (let position = 0; position < text.length; ) {
      const blank = at(BLANK, text, position);
      if (blank) {
        position += blank[0].length;
        continue;
      }
      const start = at(START, text, position);
      if (!start) {
        throw new Unreadable(position, 'no pair');
      }
      const [value, end] = valueAt(text, position + start[0].length);
      if (values.has(start[1])) {
        duplicates.add(start[1]);
      }
      values.set(start[1], value);
      position = end;
    }
  } catch (error) {
    if (!(error instanceof Unreadable)) {
      throw error;
    }
    return { values: new Map(), duplicates: [], problem: { line: text.slice(0, error.position).split('\n').length, why: error.why } };
  }
  return { values, duplicates: [...duplicates], problem: null };
}

/** A value and where what follows it begins. */
function valueAt(text: string, position: number): [string, number] {
  const quote = text[position];
  if (!(quote in QUOTED)) {
    const line = at(UNQUOTED, text, position)![0];
    return [line.replace(COMMENT, '').replace(ENDS, ''), position + line.length + 1];
  }
  const quoted = at(QUOTED[quote], text, position);
  if (!quoted) {
    throw new Unreadable(position, 'open quote');
  }
  const end = position + quoted[0].length;
  const rest = at(BLANK, text, end);
  if (!rest) {
    throw new Unreadable(end, 'behind quote');
  }
  const value = quote === "'" ? quoted[1].replace(/\\'/g, "'") : quoted[1].replace(/\\([^])/g, (all, letter: string) => MEANS[letter] ?? all);
  return [value, end + rest[0].length];
}

function at(pattern: RegExp, text: string, position: number): RegExpExecArray | null {
  pattern.lastIndex = position;
  return pattern.exec(text);
}
