import java.io.File;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.zookeeper.ZooDefs;
import org.apache.zookeeper.server.DataTree;
import org.apache.zookeeper.server.persistence.FileSnap;

/**
 * Writes a snapshot for a server that has not run yet, with nodes below which many children were created. No request can
 * make a node so old.
 *
 * <p>java -cp 'JARS/*' OldNodes.java DATA-DIRECTORY CHILDREN-CREATED PATH…
 */
public class OldNodes {
    public static void main(String[] arguments) throws Exception {
        File directory = new File(arguments[0], "version-2");
        if (!directory.mkdirs()) {
            throw new IllegalStateException(directory + " exists");
        }
        DataTree tree = new DataTree();
        long zxid = 0;
        for (int index = 2; index < arguments.length; index++) {
            zxid++;
            tree.createNode(
                    arguments[index], new byte[0], ZooDefs.Ids.OPEN_ACL_UNSAFE, 0, -1, zxid, System.currentTimeMillis());
            tree.getNode(arguments[index]).stat.setCversion(Integer.parseInt(arguments[1]));
        }
        tree.lastProcessedZxid = zxid;
        File snapshot = new File(directory, "snapshot." + Long.toHexString(zxid));
        new FileSnap(directory).serialize(tree, new ConcurrentHashMap<>(), snapshot, true);
    }
}
