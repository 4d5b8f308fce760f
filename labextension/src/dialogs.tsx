/** Questions, and what needs more room than the panel has. */

import { Dialog, InputDialog, showDialog } from '@jupyterlab/apputils';
import { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';
import { Api, ApiError, errorText } from './api';
import { plainText } from './previews';
import { toast } from './toasts';

interface IGiven {
  trans: TranslationBundle;
  api: Api;
}

/** Ask before something cannot be undone. */
export async function confirm(trans: TranslationBundle, title: string, words: string, action: string): Promise<boolean> {
  const answer = await showDialog({
    title,
    body: words,
    buttons: [Dialog.cancelButton({ label: trans.__('Cancel') }), Dialog.warnButton({ label: action })],
    defaultButton: 0
  });
  return answer.button.accept;
}

/** Do something; an error is shown as JupyterLab shows errors, all of it behind "More". True when it was done. */
export async function tried(words: string, action: () => Promise<unknown>): Promise<boolean> {
  try {
    await action();
    return true;
  } catch (error) {
    toast(words, `${words}. ${errorText(error)}`, 'error', { autoClose: 15_000 });
    return false;
  }
}

/** Ask with these words, and delete; asked again where something began to use it meanwhile (409). False: it is still there. */
export async function deleted(
  trans: TranslationBundle,
  name: string,
  words: string,
  failed: string,
  isUsed: boolean,
  remove: (isUsed: boolean) => Promise<unknown>
): Promise<boolean> {
  if (!(await confirm(trans, trans.__('Delete %1?', name), words, trans.__('Delete')))) {
    return false;
  }
  return tried(failed, async () => {
    try {
      await remove(isUsed);
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 409)) {
        throw error;
      }
      const title = trans.__('Delete %1 although it is in use?', name);
      if (await confirm(trans, title, error.text, trans.__('Delete'))) {
        await remove(true);
      }
    }
  });
}

/** A line of text, null when cancelled. */
export async function askText(title: string, label: string, text: string, action: string): Promise<string | null> {
  const answer = await InputDialog.getText({ title, label, text, okLabel: action, selectionRange: text.length });
  return answer.button.accept && answer.value ? answer.value : null;
}

/** A month's budget in US dollars; "" takes it away, null when cancelled. */
export async function askBudget(trans: TranslationBundle, text: string): Promise<string | null> {
  const answer = await InputDialog.getText({
    title: trans.__('Budget of a month'), label: trans.__('US dollars; empty for none. When it is spent, schedules are skipped until next month; nothing that runs is stopped.'), text,
    placeholder: '50', okLabel: trans.__('Keep')
  });
  return answer.button.accept ? (answer.value ?? '').trim() : null;
}

/** The end of what a session printed. */
export async function showLogs({ trans, api }: IGiven, session: string, title: string): Promise<void> {
  let text: string;
  try {
    const logs = await api.logs(session);
    const plain = plainText(logs.text);
    text = (logs.truncated ? trans.__('(only the end)') + '\n' : '') + (plain || trans.__('Nothing was printed yet.'));
  } catch (error) {
    toast(title, errorText(error), 'error', { autoClose: 15_000 });
    return;
  }
  await showText(trans, title, text);
}

/** Text in a large dialog. */
export async function showText(trans: TranslationBundle, title: string, text: string): Promise<void> {
  await showDialog({
    title,
    body: <pre className="cb-log" tabIndex={0}>{text}</pre>,
    buttons: [Dialog.okButton({ label: trans.__('Close') })]
  });
}
