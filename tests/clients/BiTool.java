import java.sql.Connection;
import java.sql.DatabaseMetaData;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.ResultSetMetaData;
import java.sql.SQLException;
import java.sql.Statement;
import java.sql.Timestamp;
import java.sql.Types;
import java.time.LocalDate;
import java.util.Properties;
import java.util.StringJoiner;

/**
 * Asks a JDBC driver what BI tools ask of it, as DBeaver and Metabase do when they connect, list
 * tables, describe them and run queries. Prints each row of each answer as a line of fields that
 * are separated by tabs, the question's name first. Ends with an error when the driver does.
 */
public class BiTool {
  private static final int MOST_ROWS = 400;

  public static void main(String[] arguments) throws Exception {
    Properties properties = new Properties();
    for (int i = 2; i < arguments.length; i++) {
      String[] pair = arguments[i].split("=", 2);
      properties.setProperty(pair[0], pair[1]);
    }
    try (Connection connection = DriverManager.getConnection(arguments[1], properties)) {
      if (arguments[0].equals("read")) {
        describe(connection.getMetaData());
        query(connection);
        line("valid", connection.isValid(10));
      } else {
        write(connection);
      }
    }
  }

  private static void describe(DatabaseMetaData meta) throws SQLException {
    line("product", meta.getDatabaseProductName(), meta.getDatabaseProductVersion(),
        meta.getDatabaseMajorVersion(), meta.getUserName(), meta.getDriverVersion());
    rows("catalogs", meta.getCatalogs());
    rows("schemas", meta.getSchemas());
    rows("tableTypes", meta.getTableTypes());
    rows("tables", meta.getTables(null, "tallyport", "%", null));
    rows("views", meta.getTables(null, "tallyport", "usage%", new String[] {"VIEW"}));
    rows("columns", meta.getColumns(null, "tallyport", "usage_daily", "%"));
    rows("typeInfo", meta.getTypeInfo());
    rows("primaryKeys", meta.getPrimaryKeys(null, "tallyport", "usage_daily"));
    rows("importedKeys", meta.getImportedKeys(null, "tallyport", "usage_daily"));
    rows("exportedKeys", meta.getExportedKeys(null, "tallyport", "usage_daily"));
    rows("indexInfo", meta.getIndexInfo(null, "tallyport", "usage_daily", false, true));
    rows("versionColumns", meta.getVersionColumns(null, "tallyport", "usage_daily"));
    rows("functions", meta.getFunctions(null, null, "toStartOf%"));
    rows("procedures", meta.getProcedures(null, null, "%"));
    rows("privileges", meta.getTablePrivileges(null, "tallyport", "%"));
    rows("clientInfo", meta.getClientInfoProperties());
  }

  private static void query(Connection connection) throws SQLException {
    String byPort = "SELECT port_id, sum(requests) AS calls, sum(cost) AS spent, max(date) AS day"
        + " FROM usage_daily WHERE port_id = ? AND date >= ? AND requests > ? GROUP BY port_id";
    try (PreparedStatement statement = connection.prepareStatement(byPort)) {
      statement.setString(1, "it's");
      statement.setObject(2, LocalDate.of(2026, 1, 1));
      statement.setLong(3, 0);
      rows("prepared", statement.executeQuery());
      statement.setString(1, "x' OR 1 = 1 --");
      statement.setObject(2, LocalDate.of(2026, 1, 1));
      statement.setLong(3, 0);
      rows("injected", statement.executeQuery());
    }
    try (PreparedStatement statement = connection.prepareStatement("SELECT ? AS a, ? AS b, ? AS c")) {
      statement.setString(1, "it's \\ \"x\" ? `y`");
      statement.setTimestamp(2, Timestamp.valueOf("2026-11-22 10:15:00"));
      statement.setNull(3, Types.VARCHAR);
      rows("values", statement.executeQuery());
    }
    try (PreparedStatement statement =
        connection.prepareStatement("SELECT * FROM usage_ledger WHERE port_id = ?")) {
      statement.setString(1, "harbor-7");
      types("described", statement.getMetaData());
    }
    try (Statement statement = connection.createStatement()) {
      statement.setMaxRows(3);
      statement.setFetchSize(2);
      statement.setQueryTimeout(20);
      ResultSet found = statement.executeQuery("SELECT event_id, occurred_at, input_tokens, cost,"
          + " tags, port_id, session_id FROM usage_ledger ORDER BY port_id, event_id");
      types("types", found.getMetaData());
      rows("limited", found);
    }
    try (Statement statement = connection.createStatement()) {
      long sum = 0;
      ResultSet found = statement.executeQuery("SELECT number, toString(number) FROM numbers(300000)");
      while (found.next()) sum += found.getLong(1) - Long.parseLong(found.getString(2)) + 1;
      line("large", sum);
      found.close();
    }
    refused("unknown", connection, "SELECT nope FROM usage_daily");
    refused("ddl", connection, "CREATE TABLE t (a Int8) ENGINE = Memory");
    refused("file", connection, "SELECT * FROM file('/etc/passwd', 'LineAsString')");
    refused("users", connection, "SELECT * FROM system.users");
  }

  /** Inserts through a batch into the table {@code scratch} and reads it again. */
  private static void write(Connection connection) throws SQLException {
    try (Statement statement = connection.createStatement()) {
      statement.execute("CREATE TABLE scratch (a Int64, s String) ENGINE = MergeTree ORDER BY a");
    }
    try (PreparedStatement insert =
        connection.prepareStatement("INSERT INTO scratch (a, s) VALUES (?, ?)")) {
      for (int i = 0; i < 5000; i++) {
        insert.setLong(1, i);
        insert.setString(2, "it's \\ " + i);
        insert.addBatch();
      }
      line("batch", insert.executeBatch().length);
    }
    try (Statement statement = connection.createStatement()) {
      rows("written", statement.executeQuery("SELECT count(), sum(a), max(s) FROM scratch"));
      statement.execute("DROP TABLE scratch");
    }
  }

  private static void refused(String name, Connection connection, String sql) throws SQLException {
    try (Statement statement = connection.createStatement()) {
      statement.execute(sql);
      line(name, "done");
    } catch (SQLException error) {
      line(name, error.getMessage().split("\n")[0]);
    }
  }

  private static void types(String name, ResultSetMetaData meta) throws SQLException {
    for (int i = 1; i <= meta.getColumnCount(); i++) {
      line(name, meta.getColumnLabel(i), meta.getColumnTypeName(i), meta.getColumnType(i));
    }
  }

  private static void rows(String name, ResultSet found) throws SQLException {
    int columns = found.getMetaData().getColumnCount();
    int count = 0;
    while (found.next()) {
      Object[] values = new Object[columns];
      for (int i = 0; i < columns; i++) values[i] = found.getObject(i + 1);
      if (count++ < MOST_ROWS) line(name, values);
    }
    line(name + "Count", count);
    found.close();
  }

  private static void line(String name, Object... values) {
    StringJoiner text = new StringJoiner("\t").add(name);
    for (Object value : values) text.add(String.valueOf(value).replaceAll("[\t\r\n]", " "));
    System.out.println(text);
  }
}
