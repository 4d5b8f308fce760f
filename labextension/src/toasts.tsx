/** Short words at the edge of the window. What does not fit is behind "More": JupyterLab cuts a toast at 140 characters, and what to
 *  do next stands at the end. */

import { Dialog, Notification, showDialog } from '@jupyterlab/apputils';
import * as React from 'react';
import { language } from './language';
import { toastText } from './toast_text';

type Kind = 'success' | 'info' | 'error';

/** Show a text; `title` is that of the dialog behind "More". */
export function toast(title: string, text: string, kind: Kind, how: { autoClose: number | false; actions?: Notification.IAction[] }): void {
  const { trans } = language;
  const { shown, more } = toastText(text);
  const actions = [...(how.actions ?? [])];
  if (more) {
    actions.unshift({ label: trans.__('More'), caption: trans.__('Show all of it'), callback: () => void whole(title, text) });
  }
  Notification.emit(shown, kind, { autoClose: more && kind === 'error' ? false : how.autoClose, actions }); // not all of it was read yet
}

async function whole(title: string, text: string): Promise<void> {
  const close = Dialog.okButton({ label: language.trans.__('Close') });
  await showDialog({ title, body: <pre className="cb-log" tabIndex={0}>{text}</pre>, buttons: [close] });
}
