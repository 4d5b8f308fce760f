/** A look at a file of a volume: text, tables and pictures. Shown as text and as an image, never as a page. */

import { Dialog, showDialog } from '@jupyterlab/apputils';
import * as React from 'react';
import { showText, tried } from './dialogs';
import { ITools } from './tools';
import { fileName, sizeText } from './words';

const TEXT_BYTES = 256 * 1024;
const TABLE_ROWS = 200;
const IMAGES: Record<string, string> = { png: 'image/png', jpg: 'image/jpeg', jpeg: 'image/jpeg', gif: 'image/gif', webp: 'image/webp', bmp: 'image/bmp' };

/** Open a dialog with the start of a file. */
export async function showFile(tools: ITools, volume: string, path: string, size: number): Promise<void> {
  const { trans, api } = tools;
  const name = fileName(path);
  await tried(trans.__('%1 cannot be shown', name), async () => {
    const blob = await api.preview(volume, path);
    const ending = name.slice(name.lastIndexOf('.') + 1).toLowerCase();
    if (ending in IMAGES && blob.size === size) {
      return showImage(tools, name, new Blob([blob], { type: IMAGES[ending] }));
    }
    const bytes = new Uint8Array(await blob.slice(0, TEXT_BYTES).arrayBuffer());
    const cut = bytes.length < size ? '\n' + trans.__('… the first %1 of %2', sizeText(bytes.length), sizeText(size)) : '';
    if (bytes.includes(0)) {
      return showText(trans, name, trans.__('This is no text (%1). Download it to look at it.', sizeText(size)));
    }
    const text = new TextDecoder().decode(bytes);
    if (ending === 'csv' || ending === 'tsv') {
      return showTable(tools, name, parseTable(text, ending === 'csv' ? ',' : '\t', TABLE_ROWS));
    }
    return showText(trans, name, (ending === 'ipynb' && !cut ? notebookText(text) : text) + cut);
  });
}

async function showImage({ trans }: ITools, name: string, blob: Blob): Promise<void> {
  const url = URL.createObjectURL(blob);
  try {
    await showDialog({ title: name, body: <img className="cb-image" src={url} alt={name} />, buttons: [Dialog.okButton({ label: trans.__('Close') })] });
  } finally {
    URL.revokeObjectURL(url);
  }
}

async function showTable({ trans }: ITools, name: string, rows: string[][]): Promise<void> {
  const [head, ...body] = rows;
  await showDialog({
    title: name,
    body: (
      <div className="cb-table" tabIndex={0}>
        <table>
          <thead>
            <tr>{head?.map((cell, index) => <th key={index}>{cell}</th>)}</tr>
          </thead>
          <tbody>
            {body.map((row, number) => (
              <tr key={number}>{row.map((cell, index) => <td key={index}>{cell}</td>)}</tr>
            ))}
          </tbody>
        </table>
      </div>
    ),
    buttons: [Dialog.okButton({ label: trans.__('Close') })]
  });
}

/** A notebook's cells as text. */
function notebookText(text: string): string {
  try {
    const cells: { cell_type: string; source: string | string[] }[] = JSON.parse(text).cells;
    return cells.map(cell => `# [${cell.cell_type}]\n${[cell.source].flat().join('')}`).join('\n\n');
  } catch {
    return text;
  }
}

/** The first rows of separated values, with quotes as RFC 4180 has them. */
export function parseTable(text: string, separator: string, most: number): string[][] {
  const rows: string[][] = [];
  let row: string[] = [];
  let cell = '';
  let quoted = false;
  for (let at = 0; at < text.length && rows.length < most; at++) {
    const letter = text[at];
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
    } else if (letter === '\n') {
      rows.push([...row, cell.replace(/\r$/, '')]);
      row = [];
      cell = '';
    } else {
      cell += letter;
    }
  }
  if ((cell || row.length) && rows.length < most) {
    rows.push([...row, cell]);
  }
  return rows;
}
