/** Questions, and what needs more room than the panel has. */

import { Dialog, InputDialog, Notification, ReactWidget, showDialog } from '@jupyterlab/apputils';
import { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';
import { Api, errorText } from './api';
import { parseDotenv } from './dotenv';

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

/** Do something; an error is shown as JupyterLab shows errors. True when it was done. */
export async function tried(words: string, action: () => Promise<unknown>): Promise<boolean> {
  try {
    await action();
    return true;
  } catch (error) {
    Notification.error(`${words}. ${errorText(error)}`, { autoClose: 15_000 });
    return false;
  }
}

/** A line of text, null when cancelled. */
export async function askText(title: string, label: string, text: string, action: string): Promise<string | null> {
  const answer = await InputDialog.getText({ title, label, text, okLabel: action, selectionRange: text.length });
  return answer.button.accept && answer.value ? answer.value : null;
}

/** A month's budget in US dollars; "" takes it away, null when cancelled. */
export async function askBudget(trans: TranslationBundle, text: string): Promise<string | null> {
  const answer = await InputDialog.getText({
    title: trans.__('Budget of a month'), label: trans.__('US dollars; empty for none. Nothing is stopped by it.'), text,
    placeholder: '50', okLabel: trans.__('Keep')
  });
  return answer.button.accept ? (answer.value ?? '').trim() : null;
}

/** The end of what a session printed. */
export async function showLogs({ trans, api }: IGiven, session: string, title: string): Promise<void> {
  let text: string;
  try {
    const logs = await api.logs(session);
    const plain = logs.text.replace(/\u001b\[[0-9;]*m/g, '');
    text = (logs.truncated ? trans.__('(only the end)') + '\n' : '') + (plain || trans.__('Nothing was printed yet.'));
  } catch (error) {
    Notification.error(errorText(error));
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

/** What the form of a secret gives; its values leave the page once, and stay nowhere. */
export interface ISecretForm {
  name: string;
  values: Record<string, string>;
}

class SecretBody extends ReactWidget implements Dialog.IBodyWidget<ISecretForm> {
  constructor(private trans: TranslationBundle, private form: { name: string; keys: string[]; fixed: boolean }) {
    super();
    this.addClass('cb-secret-form');
  }

  getValue(): ISecretForm {
    const values: Record<string, string> = {};
    this.rows.filter(([key]) => key.trim()).forEach(([key, value]) => (values[key.trim()] = value));
    return { name: this.name.trim(), values };
  }

  protected render(): JSX.Element {
    return (
      <SecretForm
        trans={this.trans} name={this.name} fixed={this.form.fixed} rows={this.rows}
        onChange={(name, rows) => {
          this.name = name;
          this.rows = rows;
        }}
      />
    );
  }

  private name = this.form.name;
  private rows: [string, string][] = this.form.keys.length ? this.form.keys.map(key => [key, '']) : [['', '']];
}

function SecretForm(props: {
  trans: TranslationBundle; name: string; fixed: boolean; rows: [string, string][]; onChange(name: string, rows: [string, string][]): void;
}): JSX.Element {
  const { trans } = props;
  const [name, setName] = React.useState(props.name);
  const [rows, setRows] = React.useState(props.rows);
  const [said, setSaid] = React.useState('');
  const change = (newName: string, newRows: [string, string][]): void => {
    setName(newName);
    setRows(newRows);
    props.onChange(newName, newRows);
  };
  const set = (index: number, at: 0 | 1, text: string): void =>
    change(name, rows.map((row, i) => (i === index ? ((at === 0 ? [text, row[1]] : [row[0], text]) as [string, string]) : row)));
  const pasted = (text: string): boolean => {
    if (!/^\s*(?:#.*\n\s*)*(?:export\s+)?[A-Za-z_]\w*\s*=/.test(text)) {
      return false;
    }
    const { values, problems } = parseDotenv(text);
    const found = Object.entries(values);
    change(name, [...rows.filter(([key]) => key.trim() && !(key in values)), ...found]);
    setSaid([trans._n('%1 key taken', '%1 keys taken', found.length), ...problems].join('; '));
    return true;
  };
  return (
    <div>
      <label>
        {trans.__('Name')}
        <input
          className="jp-mod-styled" value={name} disabled={props.fixed} spellCheck={false} maxLength={64} placeholder="huggingface"
          onChange={event => change(event.target.value, rows)}
        />
      </label>
      <fieldset>
        <legend>{trans.__('Keys and values')}</legend>
        {rows.map(([key, value], index) => (
          <div className="cb-secret-row" key={index}>
            <input
              className="jp-mod-styled" aria-label={trans.__('Key %1', index + 1)} placeholder="HF_TOKEN" value={key} spellCheck={false}
              onChange={event => set(index, 0, event.target.value)}
              onPaste={event => pasted(event.clipboardData.getData('text')) && event.preventDefault()}
            />
            <input
              className="jp-mod-styled" type="password" autoComplete="off" aria-label={trans.__('Value %1', index + 1)} value={value}
              onChange={event => set(index, 1, event.target.value)}
            />
          </div>
        ))}
        <button type="button" className="cb-link" onClick={() => change(name, [...rows, ['', '']])}>
          {trans.__('One more key')}
        </button>
      </fieldset>
      <p className="cb-dim" role="status">
        {said || trans.__('A whole .env can be pasted into a key. Values go to the gateway, encrypted, and are never shown again.')}
      </p>
    </div>
  );
}

/** The form of a new secret, or (with its keys) of one whose values are replaced. Null when cancelled. */
export async function askSecret(trans: TranslationBundle, name = '', keys: string[] = []): Promise<ISecretForm | null> {
  const body = new SecretBody(trans, { name, keys, fixed: !!name });
  const answer = await showDialog({
    title: name ? trans.__('Replace %1', name) : trans.__('New secret'),
    body,
    focusNodeSelector: 'input:not([disabled])',
    buttons: [Dialog.cancelButton({ label: trans.__('Cancel') }), Dialog.okButton({ label: name ? trans.__('Replace') : trans.__('Create') })]
  });
  return answer.button.accept ? answer.value : null;
}
