// Prints what gcp-metadata finds out about the account that a container has, as one line of JSON.
const metadata = require('gcp-metadata');
(async () => {
    const accounts = await metadata.instance({property: 'service-accounts/', params: {recursive: 'true'}});
    const token = await metadata.instance({property: 'service-accounts/default/token', params: {scopes: 'a,b'}});
    console.log(JSON.stringify({
        found: await metadata.isAvailable(),
        project: await metadata.project('project-id'),
        account: accounts.default.email,
        universe: await metadata.universe('universe-domain'),
        token: token.access_token,
    }));
})().catch(error => { console.error(error); process.exit(1); });
