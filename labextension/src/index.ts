/** Wires the panel, the status bar item and the commands into JupyterLab (or Notebook 7). */

import { ILayoutRestorer, JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import { ILauncher } from '@jupyterlab/launcher';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStateDB } from '@jupyterlab/statedb';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';
import { Api } from './api';
import { showOnDrag } from './drops';
import { Folds } from './folds';
import { gpuIcon } from './icons';
import { language } from './language';
import { ISocket, LiveModel } from './live';
import { CurrentNotebook } from './notebook';
import { Panel } from './panel';
import { localPath, resumed } from './resume';
import { addRunOn, RUN_ON } from './run_on';
import { RunsDrive } from './runs_drive';
import { addSchedule, Forms, SCHEDULE } from './schedule_open';
import { StatusItem } from './statusbar';
import { Teller } from './tell';
import { ITools } from './tools';
import { makeUploads } from './uploads_place';

const ID = '@cellburst/labextension:plugin';

namespace Commands {
  export const open = 'cellburst:open-panel';
  export const start = 'cellburst:start-gateway';
}

const plugin: JupyterFrontEndPlugin<void> = {
  id: ID,
  description: 'GPUs, cost, volumes, secrets and schedules of Cellburst.',
  autoStart: true,
  optional: [ITranslator, ILayoutRestorer, IStateDB, ISettingRegistry, IStatusBar, ICommandPalette, ILauncher],
  activate: (
    app: JupyterFrontEnd,
    translator: ITranslator | null,
    restorer: ILayoutRestorer | null,
    db: IStateDB | null,
    settings: ISettingRegistry | null,
    statusBar: IStatusBar | null,
    palette: ICommandPalette | null,
    launcher: ILauncher | null
  ) => {
    const trans = (translator ?? nullTranslator).load('cellburst');
    language.trans = trans;
    const api = new Api(app.serviceManager.serverSettings);
    const live = new LiveModel({
      dial: () => new api.settings.WebSocket(api.liveUrl) as ISocket,
      later: (action, milliseconds) => window.setTimeout(action, milliseconds),
      never: timer => window.clearTimeout(timer),
      loggedOut: () => api.loggedOut()
    });
    const notebook = new CurrentNotebook(app);
    const forms = new Forms(app, notebook);
    const tools: ITools = {
      trans, api, live, folds: new Folds(db), notebook, forms,
      uploads: makeUploads(api, live, app.serviceManager.contents, db, trans),
      contents: app.serviceManager.contents,
      openPath: path => openPath(app, path),
      resume: (notebook, name) => resumed(app.serviceManager, localPath(notebook), name)
    };
    forms.tools = tools;
    const panel = new Panel(tools);
    app.shell.add(panel, 'left', { rank: 550, type: 'Cellburst' });
    restorer?.add(panel, 'cellburst-panel');
    showOnDrag(panel.id, () => app.shell.activateById(panel.id));

    addCommands(app, trans, live, panel);
    addSchedule(app, trans, forms, notebook);
    addRunOn(app, trans, live, notebook);
    app.serviceManager.contents.addDrive(new RunsDrive(api));
    app.serviceManager.contents.fileChanged.connect((_, change) => {
      if (change.type === 'save' && change.newValue?.path?.endsWith('.ipynb')) {
        forms.changed(); // it may be another than the one that a schedule keeps
      }
    });
    const teller = new Teller({
      trans, api, live, storage: browserStorage(), panel, openPath: tools.openPath, openRun: run => forms.openRun(run, run.name), runsChanged: () => forms.changed(),
      openPanel: () => void app.commands.execute(Commands.open)
    });
    for (const command of [Commands.open, Commands.start, SCHEDULE, RUN_ON]) {
      palette?.addItem({ command, category: 'Cellburst', args: { isPalette: true } });
    }
    launcher?.add({ command: Commands.open, category: trans.__('Other'), rank: 20 });
    if (statusBar) {
      const item = new StatusItem(trans, live, () => void app.commands.execute(Commands.open));
      statusBar.registerStatusItem('@cellburst/labextension:status', {
        item, align: 'left', rank: 10, isActive: () => item.active && shown.statusBar, activeStateChanged: live.changed as any
      });
    }

    const shown = { statusBar: true };
    const follow = (): void => live.setVisible(!document.hidden);
    void app.restored.then(follow);
    document.addEventListener('visibilitychange', follow);
    const loaded = settings?.load(ID).then(
      own => {
        const take = (): void => {
          shown.statusBar = own.get('statusBar').composite as boolean;
          teller.notifications = own.get('notifications').composite as boolean;
          teller.badge = own.get('idleBadge').composite as boolean;
          live.refresh();
        };
        take();
        own.changed.connect(take);
      },
      problem => console.error('cellburst: its settings cannot be read', problem)
    );
    // Whether it may tell anything is in the settings.
    void Promise.all([app.restored, loaded]).then(() => teller.start());
  }
};

function addCommands(app: JupyterFrontEnd, trans: ReturnType<ITranslator['load']>, live: LiveModel, panel: Panel): void {
  const none = { args: { type: 'object' as const, properties: {} } };
  app.commands.addCommand(Commands.open, {
    label: args => (args['isPalette'] ? trans.__('Open the Cellburst Panel') : trans.__('Cellburst')),
    caption: trans.__('GPUs, cost, volumes, secrets and schedules'),
    icon: args => (args['isPalette'] ? undefined : gpuIcon),
    describedBy: none,
    execute: () => app.shell.activateById(panel.id)
  });
  app.commands.addCommand(Commands.start, {
    label: trans.__('Start the Cellburst Gateway'),
    caption: trans.__('Start the gateway and the worker of this machine'),
    isEnabled: () => live.connection === 'offline',
    describedBy: none,
    execute: () => live.start()
  });
}

/** The browser's storage, null where it gives none. */
function browserStorage(): Storage | null {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
}

/** Open the notebook of a session. Sessions know its path on the machine; the server's files begin at its root. */
function openPath(app: JupyterFrontEnd, path: string): void {
  void app.commands.execute('docmanager:open', { path: localPath(path) });
}

export default plugin;
