// Prints what gcp-metadata makes of the metadata server, as one line of JSON.
const metadata = require('gcp-metadata');
(async () => console.log(JSON.stringify({
    available: await metadata.isAvailable(),
    project: await metadata.project('project-id'),
    id: String(await metadata.instance('id')),
    disks: await metadata.instance({property: 'disks', params: {recursive: 'true'}}),
    universe: await metadata.universe('universe-domain').catch(error => error.status ?? error.response?.status),
})))().catch(error => { console.error(error); process.exit(1); });
