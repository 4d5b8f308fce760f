/** What uploads need of the server, of JupyterLab's state and of the person. */

import { Contents } from '@jupyterlab/services';
import { IStateDB } from '@jupyterlab/statedb';
import { ReadonlyJSONValue } from '@lumino/coreutils';
import { TranslationBundle } from '@jupyterlab/translation';
import { Api, ApiError, errorText } from './api';
import { confirm } from './dialogs';
import { serverFile } from './drops';
import { LiveModel } from './live';
import { keptUploads, STATE_KEY, Uploads } from './uploads';

/** The window's uploads. What is under way is kept in JupyterLab's state, which outlives a reload. */
export function makeUploads(api: Api, live: LiveModel, contents: Contents.IManager, db: IStateDB | null, trans: TranslationBundle): Uploads {
  return new Uploads({
    sender: volume => ({
      send: (piece, signal) => api.chunk(volume, piece, signal),
      pause: milliseconds => new Promise<void>(resolve => setTimeout(resolve, milliseconds))
    }),
    missing: api.missing,
    publish: async (volume, file) => {
      try {
        await api.change(volume, { files: [file] });
        return true;
      } catch (error) {
        if (!(error instanceof ApiError && error.info.code === 'request.conflict')) {
          throw error;
        }
        if (!(await confirm(trans, trans.__('Replace %1?', file.path), trans.__('It is there already.'), trans.__('Replace')))) {
          return false;
        }
        await api.change(volume, { files: [file], overwrite: true });
        return true;
      }
    },
    serverFile: path => serverFile(contents, api.settings, path),
    ready: () => connected(live),
    load: async () => keptUploads(await db?.fetch(STATE_KEY)),
    save: kept => void (kept.length ? db?.save(STATE_KEY, kept as unknown as ReadonlyJSONValue) : db?.remove(STATE_KEY)),
    later: (action, milliseconds) => window.setTimeout(action, milliseconds),
    words: errorText
  });
}

/** When the gateway has told what runs: a page that was just loaded may be before its start. */
function connected(live: LiveModel): Promise<void> {
  return new Promise(resolve => {
    const look = (): void => {
      if (live.connection === 'live') {
        live.changed.disconnect(look);
        resolve();
      }
    };
    live.changed.connect(look);
    look();
  });
}
