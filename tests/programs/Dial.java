import java.net.InetSocketAddress;
import java.net.Socket;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.SocketChannel;

/**
 * Connects as Java does, which has IPv6 sockets only and dials IPv4 through them as IPv4-mapped: `Dial ADDRESS PORT`, once
 * by a blocking socket and once by a selector. A line for each.
 */
class Dial {
    public static void main(String[] words) {
        InetSocketAddress to = new InetSocketAddress(words[0], Integer.parseInt(words[1]));
        boolean all = say("blocking", () -> blocking(to)) & say("selector", () -> selector(to));
        System.exit(all ? 0 : 1);
    }

    interface Way {
        String[] go() throws Exception;
    }

    static boolean say(String name, Way way) {
        try {
            String[] seen = way.go();
            System.out.printf("%s peer=%s received=%s%n", name, seen[0], seen[1]);
            return true;
        } catch (Exception error) {
            System.out.printf("%s error=%s%n", name, error.getMessage());
            return false;
        }
    }

    static String[] blocking(InetSocketAddress to) throws Exception {
        try (Socket socket = new Socket()) {
            socket.connect(to, 20000);
            socket.getOutputStream().write("sent by java".getBytes());
            socket.shutdownOutput();
            String received = new String(socket.getInputStream().readAllBytes());
            return new String[] {socket.getRemoteSocketAddress().toString(), received};
        }
    }

    static String[] selector(InetSocketAddress to) throws Exception {
        try (Selector selector = Selector.open(); SocketChannel channel = SocketChannel.open()) {
            channel.configureBlocking(false);
            channel.register(selector, SelectionKey.OP_CONNECT);
            if (!channel.connect(to)) {
                selector.select(20000);
                channel.finishConnect();
            }
            channel.keyFor(selector).interestOps(SelectionKey.OP_READ);
            channel.write(ByteBuffer.wrap("sent by java".getBytes()));
            channel.shutdownOutput();
            ByteBuffer room = ByteBuffer.allocate(1024);
            while (selector.select(20000) > 0 && channel.read(room) >= 0) {
                selector.selectedKeys().clear();
            }
            return new String[] {channel.getRemoteAddress().toString(), new String(room.array(), 0, room.position())};
        }
    }
}
