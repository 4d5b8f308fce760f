/** Our icons, in JupyterLab's own shape and colours. */

import { LabIcon } from '@jupyterlab/ui-components';

/** A board with its two fans. */
export const gpuIcon = new LabIcon({
  name: '@cellburst/labextension:gpu',
  svgstr: `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">
  <g class="jp-icon3" fill="#616161">
    <path d="M2 4v16h2v-3h2v2h6v-2h10V6H4V4zm2 4h16v7H4z"/>
    <path d="M8 8.7a2.8 2.8 0 1 0 0 5.6 2.8 2.8 0 0 0 0-5.6m0 1.7a1.1 1.1 0 1 1 0 2.2 1.1 1.1 0 0 1 0-2.2"/>
    <path d="M16 8.7a2.8 2.8 0 1 0 0 5.6 2.8 2.8 0 0 0 0-5.6m0 1.7a1.1 1.1 0 1 1 0 2.2 1.1 1.1 0 0 1 0-2.2"/>
  </g>
</svg>`
});

/** A moon: put away. */
export const parkIcon = new LabIcon({
  name: '@cellburst/labextension:park',
  svgstr: `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">
  <path class="jp-icon3" fill="#616161" d="M12.3 3a9 9 0 1 0 8.7 11.6A7.5 7.5 0 0 1 12.3 3m-2.6 2.6a9.3 9.3 0 0 0 7.2 11.1A7 7 0 1 1 9.7 5.6"/>
</svg>`
});

/** A disk drum. */
export const volumeIcon = new LabIcon({
  name: '@cellburst/labextension:volume',
  svgstr: `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">
  <path class="jp-icon3" fill="#616161" d="M12 3C7.6 3 4 4.6 4 6.5v11C4 19.4 7.6 21 12 21s8-1.6 8-3.5v-11C20 4.6 16.4 3 12 3m0 2c3.5 0 5.6 1 6 1.5-.4.5-2.5 1.5-6 1.5s-5.6-1-6-1.5C6.400 6 8.500 5 12 5M6 9c1.500.7 3.600 1 6 1s4.500-.3 6-1v3c-.4.5-2.500 1.500-6 1.500s-5.600-1-6-1.500zm0 5.500c1.500.7 3.600 1 6 1s4.500-.3 6-1v3c-.4.5-2.500 1.500-6 1.500s-5.600-1-6-1.500z"/>
</svg>`
});

/** A calendar with a clock's hands: runs by itself. */
export const scheduleIcon = new LabIcon({
  name: '@cellburst/labextension:schedule',
  svgstr: `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">
  <path class="jp-icon3" fill="#616161" d="M7 2v2H5a2 2 0 0 0-2 2v13a2 2 0 0 0 2 2h6v-2H5V10h14v2h2V6a2 2 0 0 0-2-2h-2V2h-2v2H9V2zm10 11a5 5 0 1 0 0 10 5 5 0 0 0 0-10m-.7 2h1.400v2.700l2 1.200-.7 1.200-2.700-1.600z"/>
</svg>`
});
