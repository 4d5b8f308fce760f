/** A volume's folder in the panel: browse, upload, download, rename, delete, look at a file. */

import { closeIcon, downloadIcon, editIcon, fileIcon, fileUploadIcon, folderIcon } from '@jupyterlab/ui-components';
import * as React from 'react';
import { SHARED } from './api';
import { askText, confirm, tried } from './dialogs';
import { Action, ListBody, Note, RowList } from './parts';
import { showFile } from './preview';
import { FolderEntry } from './protocol';
import { ITools, useList, useTools } from './tools';
import { Transfers, useLabDrops, useTransfers, useUpload } from './volume_uploads';
import { sizeText } from './words';

/** Of a volume by its name, or of a network file system by SHARED and its name. */
export function Folder(props: { volume: string; onChanged(): void }): JSX.Element {
  const tools = useTools();
  const { trans, api } = tools;
  const { volume } = props;
  const title = shownName(volume);
  const [path, setPath] = React.useState('');
  const [over, setOver] = React.useState(false);
  const picker = React.useRef<HTMLInputElement>(null);
  const into = React.useRef<string | undefined>(undefined);
  const pick = (folder?: string): void => {
    into.current = folder;
    picker.current?.click();
  };
  const list = useList(() => api.folder(volume, path), true, [api, volume, path]);
  const changed = (): void => {
    list.refresh();
    props.onChanged();
  };
  const transfers = useTransfers(volume);
  // One that was begun by a page before this one ends without a word to this folder.
  const under = React.useRef(0);
  React.useEffect(() => {
    if (transfers.length < under.current) {
      changed();
    }
    under.current = transfers.length;
  }, [transfers.length]);
  const upload = useUpload(volume, path, changed);
  const node = React.useRef<HTMLDivElement>(null);
  useLabDrops(node, setOver, upload.paths);
  const join = (name: string): string => (path ? `${path}/${name}` : name);
  return (
    <div
      ref={node} className={over ? 'cb-folder cb-over' : 'cb-folder'}
      onDragOver={event => {
        if (event.dataTransfer.types.includes('Files')) {
          event.preventDefault();
          event.stopPropagation();
          setOver(true);
        }
      }}
      onDragLeave={() => setOver(false)}
      onDrop={event => {
        event.preventDefault();
        event.stopPropagation();
        setOver(false);
        upload.drop(event.dataTransfer);
      }}
    >
      <div className="cb-line cb-path">
        <nav aria-label={trans.__('Folder')} className="cb-text">
          <button className="cb-crumb" onClick={() => setPath('')}>{title}</button>
          {path.split('/').filter(Boolean).map((part, index, parts) => (
            <React.Fragment key={index}>
              {' / '}
              <button className="cb-crumb" onClick={() => setPath(parts.slice(0, index + 1).join('/'))}>{part}</button>
            </React.Fragment>
          ))}
        </nav>
        <span className="cb-actions">
          <Action icon={fileUploadIcon} label={trans.__('Upload files to %1', join('') || title)} onClick={() => pick()} />
        </span>
        <input
          ref={picker} type="file" multiple hidden aria-label={trans.__('Files to upload')}
          onChange={event => {
            upload.files([...(event.target.files ?? [])], into.current);
            event.target.value = '';
          }}
        />
      </div>
      <Transfers transfers={transfers} onPick={one => pick(one.path.slice(0, Math.max(0, one.path.lastIndexOf('/'))))} />
      <ListBody list={list} rows={value => value.entries ?? []} empty={trans.__('Empty. Drop files here, from the desktop or the file browser, or use the button above.')}>
        {(rows, value) => (
          <>
            <RowList label={trans.__('Files of %1', join('') || title)} rows={rows} rowHeight={30} rowKey={row => row.name}>
              {row => <Entry entry={row} path={join(row.name)} volume={volume} onOpen={setPath} onChanged={changed} />}
            </RowList>
            {(value.entries_count ?? 0) > rows.length && (
              <Note>{trans.__('The first %1 of %2 are shown.', rows.length, value.entries_count)}</Note>
            )}
          </>
        )}
      </ListBody>
    </div>
  );
}

function Entry(props: { entry: FolderEntry; path: string; volume: string; onOpen(path: string): void; onChanged(): void }): JSX.Element {
  const tools = useTools();
  const { trans, api } = tools;
  const { entry, path, volume } = props;
  const kind = entry.kind ?? 'file'; // left out on the wire where it is the default
  const folder = kind === 'folder';
  const shared = volume.startsWith(SHARED); // of its folders no sizes are known, and it has no renaming
  const size = folder && shared ? '' : kind === 'link' ? trans.__('link') : sizeText(entry.size_bytes ?? 0);
  const Icon = folder ? folderIcon : fileIcon;
  const rename = async (): Promise<void> => {
    const to = await askText(trans.__('Rename %1', entry.name), trans.__('New path in the volume'), path, trans.__('Rename'));
    if (to && to !== path && (await tried(trans.__('Not renamed'), () => api.change(volume, { renamed: [{ path, to }] })))) {
      props.onChanged();
    }
  };
  const remove = async (): Promise<void> => {
    const words = folder && shared ? trans.__('With all that it holds.') : folder ? trans.__('It has %1 files, %2.', entry.files ?? 0, sizeText(entry.size_bytes ?? 0)) : sizeText(entry.size_bytes ?? 0);
    if (await confirm(trans, trans.__('Delete %1?', entry.name), words, trans.__('Delete'))) {
      await tried(trans.__('Not deleted'), () => api.change(volume, { deleted: [path] }));
      props.onChanged();
    }
  };
  return (
    <div className={size ? 'cb-line cb-file' : 'cb-line cb-file cb-file-bare'}>
      <Icon.react tag="span" className="cb-file-icon" aria-hidden="true" />
      <button
        className="cb-name" title={entry.name} onClick={() => (folder ? props.onOpen(path) : void showFile(tools, volume, path, entry.size_bytes ?? 0))}
      >
        {entry.name}
      </button>
      {size && <span className="cb-dim cb-size">{size}</span>}
      <span className="cb-actions">
        {kind === 'file' && (
          <Action icon={downloadIcon} label={trans.__('Download %1', entry.name)} onClick={() => download(tools, volume, path)} />
        )}
        {!shared && <Action icon={editIcon} label={trans.__('Rename %1', entry.name)} onClick={() => void rename()} />}
        <Action icon={closeIcon} label={trans.__('Delete %1', entry.name)} onClick={() => void remove()} />
      </span>
    </div>
  );
}

/** A volume's or network file system's name as people know it. */
export function shownName(volume: string): string {
  return volume.startsWith(SHARED) ? volume.slice(SHARED.length) : volume;
}

function download({ api }: ITools, volume: string, path: string): void {
  const link = document.createElement('a');
  link.href = api.fileUrl(volume, path);
  link.download = '';
  link.click();
}
