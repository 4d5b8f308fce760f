/** Bringing a parked session back: its notebook's kernel does it, which has the session's image and names. */

import { PageConfig } from '@jupyterlab/coreutils';
import { KernelMessage, ServiceManager } from '@jupyterlab/services';

/** The Jupyter server's path of a path on the machine; a path outside of its root stays as it is. */
export function localPath(path: string, rootUri = PageConfig.getOption('rootUri')): string {
  const root = rootUri ? decodeURIComponent(new URL(rootUri).pathname).replace(/\/+$/, '') + '/' : '/';
  return path.startsWith(root) ? path.slice(root.length) : path;
}

/** The line that resumes a session, as code for its kernel. */
export function resumeCode(name: string): string {
  const word = `'${name.replace(/'/g, `'"'"'`)}'`;
  return `get_ipython().run_line_magic("modal", ${JSON.stringify(`resume session=${word}`)})`;
}

/** Have the kernel of a notebook resume a session. False: no kernel of it runs. Rejects with what the kernel says. */
export async function resumed(services: ServiceManager.IManager, path: string, name: string): Promise<boolean> {
  await services.sessions.refreshRunning();
  for (const model of services.sessions.running()) {
    if (model.path !== path || !model.kernel) {
      continue;
    }
    const kernel = services.kernels.connectTo({ model: model.kernel });
    try {
      const future = kernel.requestExecute({ code: resumeCode(name), store_history: false, stop_on_error: false, allow_stdin: false });
      const reply = (await future.done) as KernelMessage.IExecuteReplyMsg;
      if (reply.content.status !== 'ok') {
        throw new Error('evalue' in reply.content ? String(reply.content.evalue) : 'The kernel was interrupted.');
      }
      return true;
    } finally {
      kernel.dispose();
    }
  }
  return false;
}
