/** A pasted `.env`: the same rules as the SDK's `Secret.from_dotenv`. Pure; nothing is kept. */

export interface IParsed {
  values: Record<string, string>;
  /** What could not be taken, by line and key, never with a value. */
  problems: string[];
}

const LINE = /^\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=(.*)$/;

/** KEY=VALUE lines; quotes, `export`, comments and values of several lines in quotes. A later line of a key replaces an earlier. */
export function parseDotenv(text: string): IParsed {
  const values: Record<string, string> = {};
  const problems: string[] = [];
  const lines = text.replace(/^\ufeff/, '').split(/\r\n|\r|\n/);
  for (let number = 0; number < lines.length; number++) {
    const line = lines[number];
    if (/^\s*(#.*)?$/.test(line)) {
      continue;
    }
    const found = LINE.exec(line);
    if (!found) {
      problems.push(`line ${number + 1} is not KEY=VALUE`);
      continue;
    }
    const key = found[1];
    let rest = found[2].trim();
    const quote = rest[0];
    if (quote === '"' || quote === "'") {
      const start = number;
      let end = closing(rest, quote);
      while (end < 0 && number + 1 < lines.length) {
        number += 1;
        rest += '\n' + lines[number];
        end = closing(rest, quote);
      }
      if (end < 0) {
        problems.push(`the quote of ${key} (line ${start + 1}) is not closed`);
        number = start;
        continue;
      }
      const inner = rest.slice(1, end);
      values[key] = quote === '"' ? unescaped(inner) : inner;
    } else {
      values[key] = rest.replace(/\s+#.*$/, '');
    }
  }
  return { values, problems };
}

function closing(text: string, quote: string): number {
  for (let at = 1; at < text.length; at++) {
    if (text[at] === '\\' && quote === '"') {
      at += 1;
    } else if (text[at] === quote) {
      return at;
    }
  }
  return -1;
}

function unescaped(text: string): string {
  const known: Record<string, string> = { n: '\n', r: '\r', t: '\t' };
  return text.replace(/\\(.)/gs, (_, letter: string) => known[letter] ?? letter);
}
