/** "Use in this notebook" of a volume or a network file system: a path, kept in the notebook's metadata. */

import { linkIcon } from '@jupyterlab/ui-components';
import * as React from 'react';
import { askText } from './dialogs';
import { pathProblem } from './mount_path';
import { Action } from './parts';
import { ITools, useTools } from './tools';

/** Where the notebook in front has it, undefined where it has not. */
export function usedAt({ notebook }: ITools, volume: string): string | undefined {
  return Object.entries(notebook.used.volumes ?? {}).find(([, name]) => name === volume)?.[0];
}

/** `volume` is what `volumes=` says of it, `title` its name. */
export function UseAction(props: { volume: string; title: string; onUsed(): void }): JSX.Element {
  const tools = useTools();
  const { trans, notebook } = tools;
  const { volume, title } = props;
  const path = usedAt(tools, volume);
  const use = async (): Promise<void> => {
    if (path) {
      notebook.change(used => {
        delete used.volumes![path];
        return used;
      });
    } else {
      const where = await askPath(tools, title);
      if (where) {
        notebook.change(used => ({ ...used, volumes: { ...used.volumes, [where]: volume } }));
      }
    }
    props.onUsed();
  };
  return (
    <Action
      icon={linkIcon} pressed={!!path} disabled={!notebook.path} onClick={() => void use()}
      label={
        !notebook.path ? trans.__('Open a notebook to use %1 in it', title)
        : path ? trans.__('Do not use %1 (%2) in this notebook', title, path) : trans.__('Use %1 in this notebook', title)
      }
    />
  );
}

/** A path that `volumes=` can say, null when cancelled. What was typed stays until it is one. */
async function askPath({ trans, notebook }: ITools, title: string): Promise<string | null> {
  const taken = notebook.used.volumes ?? {};
  let text = '/data' in taken ? `/${title}` : '/data';
  let label = trans.__('Its path in containers');
  for (;;) {
    const typed = await askText(trans.__('Use %1 in this notebook', title), label, text, trans.__('Use'));
    if (typed === null) {
      return null;
    }
    const path = typed.startsWith('/') ? typed : `/${typed}`;
    const problem = pathProblem(path, Object.keys(taken));
    if (!problem) {
      return path;
    }
    text = typed;
    label = {
      mark: trans.__('A path has none of these, which have a meaning of their own in a cell\'s line: , : " \\. For example /data'),
      part: trans.__('A path has no empty parts, and no "." and "..". For example /data'),
      taken: trans.__('This notebook has something else there already. Give another path')
    }[problem];
  }
}
