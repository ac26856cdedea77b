// OHIF 3.13's app-config.js with a student in place of SAM: its two files lie in the folder `kdsam` beside index.html.
const student = ['encoder_browser', 'decoder'].map(file => ({
  name: file,
  key: file.split('_')[0],
  url: `/kdsam/${file}.onnx`,
  size: 18, // MB, for the message while it loads
  opt: { executionProviders: ['wasm'] }, // of onnxruntime-web; OHIF's own choice is webgpu alone
}));

const tools = { include: 'MarkerInclude', exclude: 'MarkerExclude', box: 'BoxPrompt' };

// OHIF asks for its `ort/*.wasm` by a relative path, which leads nowhere from /segmentation/dicomlocal.
document.head.prepend(Object.assign(document.createElement('base'), { href: '/' }));

window.config = {
  extensions: [
    {
      id: 'kdsam',
      preRegistration({ servicesManager }) {
        const { toolGroupService } = servicesManager.services;
        toolGroupService.subscribe(toolGroupService.EVENTS.VIEWPORT_ADDED, ({ toolGroupId }) => {
          const group = toolGroupService.getToolGroup(toolGroupId);
          if (!group?.hasTool('MarkerLabelmap') || group.hasTool('BoxPrompt')) {
            return;
          }
          group.setToolConfiguration('MarkerLabelmap', { modelName: 'kdsam', models: { kdsam: student } });
          group.addToolInstance('BoxPrompt', 'RectangleROI', { getTextLines: () => null });
        });
      },
    },
  ],
  customizationService: {
    // The marker tool's modes, with boxes, which its code answers but its buttons do not offer.
    'cornerstone.segmentationToolbarButtons': {
      $apply: buttons =>
        buttons.map(button => {
          if (button.id !== 'MarkerLabelmap') {
            return button;
          }
          const { evaluate, options } = button.props;
          const mode = {
            ...options[0],
            value: 'include',
            values: Object.keys(tools).map(value => ({ value, label: value[0].toUpperCase() + value.slice(1) })),
            commands: ({ commandsManager, options: [chosen] }) =>
              commandsManager.run('setToolActive', { toolName: tools[chosen.value] }),
          };
          const names = ['MarkerLabelmap', ...Object.values(tools)];
          return {
            ...button,
            props: {
              ...button.props,
              evaluate: [{ ...evaluate[0], toolNames: names }, ...evaluate.slice(1)],
              options: [mode, ...options.slice(1)],
            },
          };
        }),
    },
  },
  modes: [],
  showStudyList: true,
  // Pictures from the disk, at /local; put your DICOMweb server here.
  defaultDataSourceName: 'dicomlocal',
  dataSources: [
    {
      namespace: '@ohif/extension-default.dataSourcesModule.dicomlocal',
      sourceName: 'dicomlocal',
      configuration: { friendlyName: 'files of this computer' },
    },
  ],
};
