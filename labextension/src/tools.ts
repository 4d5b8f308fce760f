/** What every part of the panel is given. */

import { Contents } from '@jupyterlab/services';
import { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';
import { Api } from './api';
import { Folds } from './folds';
import { LiveModel } from './live';
import { CurrentNotebook } from './notebook';
import type { Forms } from './schedule_open';
import { Uploads } from './uploads';

export interface ITools {
  trans: TranslationBundle;
  api: Api;
  live: LiveModel;
  folds: Folds;
  notebook: CurrentNotebook;
  uploads: Uploads;
  /** The Jupyter server's files. */
  contents: Contents.IManager;
  /** The forms of schedules. */
  forms: Forms;
  /** Open a file of the Jupyter server. */
  openPath(path: string): void;
  /** Have a parked session's notebook bring it back. False: no kernel of it runs. */
  resume(notebook: string, name: string): Promise<boolean>;
}

export const Tools = React.createContext<ITools | null>(null);

export function useTools(): ITools {
  const tools = React.useContext(Tools);
  if (!tools) {
    throw new Error('outside of the panel');
  }
  return tools;
}

/** Render again when a signal is emitted. */
export function useLive(): LiveModel {
  const { live } = useTools();
  const [, again] = React.useReducer((count: number) => count + 1, 0);
  React.useEffect(() => {
    const slot = (): void => again();
    live.changed.connect(slot);
    return () => {
      live.changed.disconnect(slot);
    };
  }, [live]);
  return live;
}

export interface IList<T> {
  value: T | null;
  error: unknown;
  loading: boolean;
  refresh(): void;
}

const AGAIN_MS = 10_000;

/** A list that is asked for when it is first shown, every ten seconds while this window is visible, and when `refresh` is called. */
export function useList<T>(ask: () => Promise<T>, active: boolean, deps: React.DependencyList): IList<T> {
  const { live } = useTools();
  const [value, setValue] = React.useState<T | null>(null);
  const [error, setError] = React.useState<unknown>(null);
  const [loading, setLoading] = React.useState(true);
  const asked = React.useRef(0);
  const refresh = React.useCallback(() => {
    const mine = ++asked.current;
    setLoading(true);
    ask().then(
      got => {
        if (mine === asked.current) {
          setValue(got);
          setError(null);
          setLoading(false);
        }
      },
      problem => {
        if (mine === asked.current) {
          setError(problem);
          setLoading(false);
        }
      }
    );
  }, deps);
  React.useEffect(() => {
    if (!active) {
      return;
    }
    refresh();
    const timer = window.setInterval(() => {
      if (!document.hidden && live.connection === 'live') {
        refresh();
      }
    }, AGAIN_MS);
    return () => {
      window.clearInterval(timer);
      asked.current += 1;
    };
  }, [active, refresh]);
  return { value, error, loading, refresh };
}
