// node-zookeeper-client connects, creates, watches and lists. It prints what it sees to standard output, a line each: the
// same lines as session.py prints.
//
// session.js HOSTS, with the client on NODE_PATH
'use strict';

const { promisify } = require('node:util');
const zookeeper = require('node-zookeeper-client');

const EVENTS = {
    NODE_CREATED: 'created',
    NODE_DELETED: 'deleted',
    NODE_DATA_CHANGED: 'changed',
    NODE_CHILDREN_CHANGED: 'children of',
};

/** A client whose calls answer with promises. */
async function connect(hosts) {
    const client = zookeeper.createClient(hosts);
    const connected = new Promise((resolve) => client.once('connected', resolve));
    client.connect();
    await connected;
    const call = (name) => promisify(client[name]).bind(client);
    const calls = ['create', 'exists', 'getChildren', 'removeRecursive'].map((name) => [name, call(name)]);
    return {
        ...Object.fromEntries(calls),
        // Returns the data alone, since a promise has one value.
        getData: call('getData'),
        setData: call('setData'),
        transaction: () => client.transaction(),
        close: () => client.close(),
    };
}

/** Events in the order of their arrival: `watch` takes one, `next` waits for one. */
function mailbox() {
    const [waiting, arrived] = [[], []];
    return {
        watch(event) {
            const line = `${EVENTS[event.getName()]} ${event.getPath()}`;
            waiting.length > 0 ? waiting.shift()(line) : arrived.push(line);
        },
        next: () => (arrived.length > 0 ? arrived.shift() : new Promise((resolve) => waiting.push(resolve))),
    };
}

async function main(hosts) {
    const [client, other] = [await connect(hosts), await connect(hosts)];
    const events = mailbox();
    const sayEvent = async () => console.log('event:', await events.next());
    const { EPHEMERAL, PERSISTENT_SEQUENTIAL } = zookeeper.CreateMode;

    console.log('created', await client.create('/judged', Buffer.from('first')));
    console.log('children', ...(await client.getChildren('/judged', events.watch)));
    console.log('created', await other.create('/judged/a', null, EPHEMERAL));
    await sayEvent();
    console.log('data', (await client.getData('/judged', events.watch)).toString());
    console.log('version', (await other.setData('/judged', Buffer.from('second'))).version);
    await sayEvent();
    await client.setData('/judged', Buffer.from('third'), 7).catch((error) => {
        if (error.getCode() !== zookeeper.Exception.BAD_VERSION) throw error;
        console.log('refused: version');
    });
    console.log('created', await client.create('/judged/s-', null, PERSISTENT_SEQUENTIAL));
    console.log('children', ...(await client.getChildren('/judged')).sort());
    console.log((await client.exists('/judged/a', events.watch)) ? 'exists' : 'no', '/judged/a');
    other.close();
    await sayEvent();
    console.log((await client.exists('/judged/a', events.watch)) ? 'exists' : 'no', '/judged/a');
    const transaction = client.transaction().create('/judged/a').remove('/judged/s-0000000001');
    const results = await promisify(transaction.commit).call(transaction);
    console.log('transaction', results[0].path);
    await sayEvent();
    console.log('children', ...(await client.getChildren('/judged')).sort());
    await client.removeRecursive('/judged', -1);
    client.close();
}

main(process.argv[2]);
