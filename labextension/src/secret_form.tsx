/** The form of a secret. Its values leave the page once, when it is saved, and are kept and shown nowhere. */

import { Dialog, ReactWidget, showDialog } from '@jupyterlab/apputils';
import { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';
import { IParsed, parseDotenv } from './dotenv';
import { sizeText } from './words';

const MOST_FILE_BYTES = 1024 ** 2; // as the SDK's Secret.from_dotenv
const LIKE_DOTENV = /^\s*(?:#.*\n\s*)*(?:export\s+)?[A-Za-z_]\w*\s*=/;

export interface ISecretForm {
  name: string;
  values: Record<string, string>;
}

type Rows = [key: string, value: string][];

class SecretBody extends ReactWidget implements Dialog.IBodyWidget<ISecretForm> {
  constructor(private trans: TranslationBundle, private name: string, private rows: Rows, private fixed: boolean) {
    super();
    this.addClass('cb-secret-form');
  }

  getValue(): ISecretForm {
    const rows = this.rows.map(([key, value]) => [key.trim(), value] as const).filter(([key]) => key);
    return { name: this.name.trim(), values: Object.fromEntries(rows) };
  }

  protected render(): JSX.Element {
    return (
      <SecretForm
        trans={this.trans} name={this.name} fixed={this.fixed} rows={this.rows}
        onChange={(name, rows) => {
          this.name = name;
          this.rows = rows;
        }}
      />
    );
  }
}

function SecretForm(props: { trans: TranslationBundle; name: string; fixed: boolean; rows: Rows; onChange(name: string, rows: Rows): void }): JSX.Element {
  const { trans } = props;
  const [name, setName] = React.useState(props.name);
  const [rows, setRows] = React.useState(props.rows);
  const [said, setSaid] = React.useState('');
  const picker = React.useRef<HTMLInputElement>(null);
  const change = (newName: string, newRows: Rows): void => {
    setName(newName);
    setRows(newRows);
    props.onChange(newName, newRows);
  };
  const set = (index: number, row: Rows[number]): void => change(name, rows.map((old, i) => (i === index ? row : old)));
  const taken = (text: string): void => {
    const parsed = parseDotenv(text);
    const old = rows.filter(([key]) => key.trim() && !parsed.values.has(key.trim()));
    if (parsed.values.size) {
      change(name, [...old, ...parsed.values]);
    }
    setSaid(told(trans, parsed));
  };
  const pasted = (text: string): boolean => {
    const is = LIKE_DOTENV.test(text);
    if (is) {
      taken(text);
    }
    return is;
  };
  const picked = async (file: File): Promise<void> => {
    if (file.size > MOST_FILE_BYTES) {
      setSaid(trans.__('%1 has %2: no .env file is larger than %3. Nothing was taken.', file.name, sizeText(file.size), sizeText(MOST_FILE_BYTES)));
      return;
    }
    try {
      taken(new TextDecoder('utf-8', { fatal: true }).decode(await file.arrayBuffer()));
    } catch {
      setSaid(trans.__('%1 cannot be read as text (UTF-8). Nothing was taken.', file.name));
    }
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
              onChange={event => set(index, [event.target.value, value])}
              onPaste={event => pasted(event.clipboardData.getData('text')) && event.preventDefault()}
            />
            <Value trans={trans} number={index + 1} value={value} onChange={text => set(index, [key, text])} />
          </div>
        ))}
        <button type="button" className="cb-link" onClick={() => change(name, [...rows, ['', '']])}>
          {trans.__('One more key')}
        </button>
        <button type="button" className="cb-link" onClick={() => picker.current?.click()}>
          {trans.__('Take a .env file…')}
        </button>
        <input
          ref={picker} type="file" hidden aria-label={trans.__('A .env file')}
          onChange={event => {
            const file = event.target.files?.[0];
            event.target.value = '';
            if (file) {
              void picked(file);
            }
          }}
        />
      </fieldset>
      <p className="cb-dim" role="status">
        {said || trans.__('A whole .env can be pasted into a key. Values go to the gateway, encrypted, and are never shown again.')}
      </p>
    </div>
  );
}

/** A value. One of several lines (a key file) can be pasted: a field for passwords would drop its line breaks, so that it is kept
 *  beside the field, which then is changed only as a whole. */
function Value(props: { trans: TranslationBundle; number: number; value: string; onChange(text: string): void }): JSX.Element {
  const { trans, number, value, onChange } = props;
  const lines = value.split('\n').length;
  const pasted = (event: React.ClipboardEvent): void => {
    const text = event.clipboardData.getData('text').replace(/\r\n?/g, '\n');
    const line = text.replace(/\n+$/, ''); // what is copied with the end of its line is a value of one line all the same
    if (line.includes('\n') || lines > 1) {
      event.preventDefault();
      onChange(line.includes('\n') ? text : line);
    }
  };
  return (
    <div>
      <input
        className="jp-mod-styled" type="password" autoComplete="off" aria-label={trans.__('Value %1', number)} readOnly={lines > 1}
        value={value.replace(/\n/g, '')} onChange={event => onChange(event.target.value)} onPaste={pasted}
        onKeyDown={event => lines > 1 && ['Backspace', 'Delete'].includes(event.key) && onChange('')}
      />
      {lines > 1 && (
        <div className="cb-dim">
          <span role="status">{trans.__('%1 lines', lines)}</span>{' '}
          <button type="button" className="cb-link" aria-label={trans.__('Clear value %1', number)} onClick={() => onChange('')}>
            {trans.__('Clear')}
          </button>
        </div>
      )}
    </div>
  );
}

/** What was taken from a `.env`, or why nothing was. */
function told(trans: TranslationBundle, { values, duplicates, problem }: IParsed): string {
  if (problem) {
    const why = {
      'no pair': trans.__('it is not KEY=VALUE'),
      'open quote': trans.__('its quote is not closed'),
      'behind quote': trans.__('something stands behind its closing quote')
    }[problem.why];
    return trans.__('Line %1 cannot be read: %2. Nothing was taken.', problem.line, why);
  }
  const count = values.size;
  const taken = trans._n('%1 key taken', '%1 keys taken', count);
  return duplicates.length ? trans.__('%1. Twice in it, the last one counts: %2', taken, duplicates.join(', ')) : taken;
}

/**
 * The form of a new secret, or (with its keys) of one whose values are replaced. It is asked for until `save` says that it was
 * saved, with what was typed in it. Returns whether it was.
 */
export async function askSecret(
  trans: TranslationBundle, save: (form: ISecretForm) => Promise<boolean>, name = '', keys: string[] = []
): Promise<boolean> {
  const fixed = !!name;
  let rows: Rows = keys.length ? keys.map(key => [key, '']) : [['', '']];
  for (;;) {
    const answer = await showDialog({
      title: fixed ? trans.__('Replace %1', name) : trans.__('New secret'),
      body: new SecretBody(trans, name, rows, fixed),
      focusNodeSelector: 'input:not([disabled])',
      buttons: [Dialog.cancelButton({ label: trans.__('Cancel') }), Dialog.okButton({ label: fixed ? trans.__('Replace') : trans.__('Create') })]
    });
    if (!answer.button.accept || !answer.value) {
      return false;
    }
    if (await save(answer.value)) {
      return true;
    }
    name = answer.value.name;
    rows = Object.entries(answer.value.values);
    rows = rows.length ? rows : [['', '']];
  }
}
