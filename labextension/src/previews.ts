/** Files of a volume as text and tables, for a look at them. Pure; nothing of a file is ever a page. */

export interface ITable {
  head: string[];
  rows: string[][];
  /** Rows that there are, the heading not counted. */
  total: number;
}

/** The heading and the first `most` rows of separated values, with quotes as RFC 4180 has them. `cut`: the text ends somewhere in a
 *  row, which is left out then. */
export function parseTable(text: string, separator: string, most: number, cut = false): ITable {
  const rows: string[][] = [];
  let count = 0;
  let row: string[] = [];
  let cell = '';
  let quoted = false;
  let empty = true;
  const close = (): void => {
    row.push(cell.replace(/\r$/, ''));
    if (count <= most) {
      rows.push(row);
    }
    count += 1;
    row = [];
    cell = '';
    empty = true;
  };
  for (let at = 0; at < text.length; at++) {
    const letter = text[at];
    if (letter === '\n' && !quoted) {
      close();
      continue;
    }
    empty = false;
    if (quoted) {
      if (letter !== '"') {
        cell += letter;
      } else if (text[at + 1] === '"') {
        cell += '"';
        at += 1;
      } else {
        quoted = false;
      }
    } else if (letter === '"' && cell === '') {
      quoted = true;
    } else if (letter === separator) {
      row.push(cell);
      cell = '';
    } else {
      cell += letter;
    }
  }
  if (!empty && !cut) {
    close();
  }
  return { head: rows[0] ?? [], rows: rows.slice(1), total: Math.max(0, count - 1) };
}

/** What a terminal would show of a text: without colours, and of a line that was written over its last state. */
export function plainText(text: string): string {
  return text.replace(/\u001b\[[0-9;?]*[A-Za-z]/g, '').split('\n').map(lastState).join('\n');
}

/** By hand: a pattern for it takes minutes for a long line. */
function lastState(line: string): string {
  let end = line.length;
  while (end && line[end - 1] === '\r') {
    end--;
  }
  return end ? line.slice(line.lastIndexOf('\r', end - 1) + 1, end) : '';
}

/** A notebook's cells and what they wrote, as text: of an output that is no text only its kind. Throws for what is no notebook. */
export function notebookText(text: string): string {
  const { cells } = JSON.parse(text) as { cells: unknown };
  if (!Array.isArray(cells)) {
    throw new Error('no notebook');
  }
  return cells.map((cell: IDict) => [`# [${words(cell?.cell_type)}]\n${joined(cell?.source)}`, ...outputs(cell?.outputs)].join('\n')).join('\n\n');
}

type IDict = Record<string, unknown> | null | undefined;

function outputs(all: unknown): string[] {
  return (Array.isArray(all) ? all : []).map((output: IDict) => `# [output]\n${outputText(output)}`);
}

function outputText(output: IDict): string {
  if (output?.output_type === 'stream') {
    return plainText(joined(output.text)).replace(/\n$/, '');
  }
  if (output?.output_type === 'error') {
    return plainText(Array.isArray(output.traceback) && output.traceback.length ? output.traceback.map(words).join('\n') : `${words(output.ename)}: ${words(output.evalue)}`);
  }
  const data = (output?.data ?? {}) as Record<string, unknown>;
  const kinds = Object.keys(data).filter(kind => kind !== 'text/plain').map(kind => `[${kind}]`);
  return [...('text/plain' in data ? [plainText(joined(data['text/plain']))] : []), ...kinds].join('\n');
}

/** Text as notebooks keep it: whole or by lines. */
function joined(value: unknown): string {
  return Array.isArray(value) ? value.map(words).join('') : words(value);
}

function words(value: unknown): string {
  return typeof value === 'string' ? value : '';
}
