/** A look at a file of a volume: text, tables, notebooks and pictures. Shown as text and as an image, never as a page. */

import { Dialog, showDialog } from '@jupyterlab/apputils';
import * as React from 'react';
import { showText, tried } from './dialogs';
import { ITable, notebookText, parseTable } from './previews';
import { ITools } from './tools';
import { fileName, sizeText } from './words';

const TEXT_CHARACTERS = 256 * 1024;
const TABLE_ROWS = 200;
const IMAGES: Record<string, string> = { png: 'image/png', jpg: 'image/jpeg', jpeg: 'image/jpeg', gif: 'image/gif', webp: 'image/webp', bmp: 'image/bmp' };
const SEPARATORS: Record<string, string> = { csv: ',', tsv: '\t' };

/** Open a dialog with the start of a file. */
export async function showFile(tools: ITools, volume: string, path: string, size: number): Promise<void> {
  const { trans, api } = tools;
  const name = fileName(path);
  await tried(trans.__('%1 cannot be shown', name), async () => {
    const blob = await api.preview(volume, path);
    const ending = name.slice(name.lastIndexOf('.') + 1).toLowerCase();
    const cut = blob.size < size;
    if (ending in IMAGES && !cut) {
      return showImage(tools, name, new Blob([blob], { type: IMAGES[ending] }));
    }
    if (new Uint8Array(await blob.slice(0, TEXT_CHARACTERS).arrayBuffer()).includes(0)) {
      return showText(trans, name, trans.__('This is no text (%1). Download it to look at it.', sizeText(size)));
    }
    if (ending === 'ipynb' && cut) {
      return showText(trans, name, trans.__('This notebook has %1, and at most %2 are read for a look. Download it to open it.', sizeText(size), sizeText(blob.size)));
    }
    // Of a letter that is cut in two at the end nothing is shown.
    const text = new TextDecoder().decode(await blob.arrayBuffer(), { stream: true });
    if (ending in SEPARATORS) {
      return showTable(tools, name, parseTable(text, SEPARATORS[ending], TABLE_ROWS, cut), cut);
    }
    const whole = ending === 'ipynb' ? asNotebook(text) : text;
    if (whole.length <= TEXT_CHARACTERS && !cut) {
      return showText(trans, name, whole);
    }
    const start = whole.slice(0, TEXT_CHARACTERS).replace(/[\ud800-\udbff]$/, '');
    const all = ending === 'ipynb' ? sizeText(whole.length) : sizeText(size);
    return showText(trans, name, start + '\n' + trans.__('… the first %1 of %2', sizeText(start.length), all));
  });
}

function asNotebook(text: string): string {
  try {
    return notebookText(text);
  } catch {
    return text; // shown as what it is
  }
}

async function showImage({ trans }: ITools, name: string, blob: Blob): Promise<void> {
  const url = URL.createObjectURL(blob);
  try {
    await showDialog({ title: name, body: <img className="cb-image" src={url} alt={name} />, buttons: [Dialog.okButton({ label: trans.__('Close') })] });
  } finally {
    URL.revokeObjectURL(url);
  }
}

async function showTable({ trans }: ITools, name: string, { head, rows, total }: ITable, cut: boolean): Promise<void> {
  const more = cut
    ? trans.__('The first %1 rows of more than %2.', rows.length, total)
    : total > rows.length ? trans.__('The first %1 rows of %2.', rows.length, total) : '';
  await showDialog({
    title: name,
    body: (
      <div>
        {more && <p className="cb-dim">{more}</p>}
        <div className="cb-table" tabIndex={0}>
          <table>
            <thead>
              <tr>{head.map((cell, index) => <th key={index}>{cell}</th>)}</tr>
            </thead>
            <tbody>
              {rows.map((row, number) => (
                <tr key={number}>{row.map((cell, index) => <td key={index}>{cell}</td>)}</tr>
              ))}
            </tbody>
          </table>
        </div>
      </div>
    ),
    buttons: [Dialog.okButton({ label: trans.__('Close') })]
  });
}
